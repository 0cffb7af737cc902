"""Adapters on disk in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

A key is `base_model.model.<module>.<suffix>`. The adapter's variant defines suffixes and shapes
(`Adapter.peft_keys`, `peft_shapes`). No other tensor is written. Reading is strict: every tensor
must belong to a parameter, and every parameter needs a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from graftlm._compat.compiled import without_compile_prefix
from graftlm.adapters.adapted import (
    adaptable_modules,
    adapter_names,
    base_modules,
    lora_modules,
)
from graftlm.adapters.adapter import DEFAULT
from graftlm.adapters.adapter_folder import adapter_folder
from graftlm.adapters.inject import Biases, attach, remove
from graftlm.adapters.peft_config import CONFIG_NAME, AdapterConfig, adapter_config, read_config
from graftlm.adapters.peft_expert_keys import as_peft_writes, places_in_peft, turned_round
from graftlm.adapters.peft_fit import (
    PREFIX,
    alpha_of,
    already_there,
    problems_of,
    rank_of,
)
from graftlm.adapters.peft_renamed import as_in_model, as_peft_renames
from graftlm.adapters.peft_trained import (
    States,
    trained_in_file,
    wanted_rows,
    with_biases,
)
from graftlm.adapters.report import LoRAReport, describe
from graftlm.adapters.same_base import require_same_base
from graftlm.adapters.split_experts import with_split_experts
from graftlm.adapters.stray_tensors import stray_tensors
from graftlm.adapters.targets import Target
from graftlm.adapters.variant_of_file import WEIGHTS_NAME, suffix_patterns
from graftlm.errors import ArtifactError, ModelError
from graftlm.files import atomic_write, write_json
from graftlm.frozen.experts import ExpertStack
from graftlm.models.base_files import folder_read
from graftlm.models.safetensors_file import Checkpoint
from graftlm.models.save import save_tokenizer
from graftlm.models.vocabulary import first_rows, grow_vocabulary

__all__ = ["load_adapter", "map_adapter", "save_adapter"]


def save_adapter(
    model: nn.Module,
    path: str | Path,
    *,
    base_name: str | None = None,
    tokenizer: Any = None,
    adapter: str | None = None,
) -> None:
    """Write an adapter of ``model`` so that PEFT, vLLM and graftlm load it.

    Each file is written atomically; other files in the folder do not change.

    Args:
        model: a model with adapters.
        path: the folder to write into.
        base_name: the name of the base model; by default its name in transformers.
        tokenizer: the tokenizer of the training, saved with the weights and its chat template.
        adapter: its name; may be omitted if the model has one adapter, or if one is active.

    Raises:
        ArtifactError: the model has no adapters.
        ResourceError: the folder cannot be written.
        TargetError: there is no adapter of that name, or the name is needed to choose one.
    """
    adapted = lora_modules(model, adapter)
    if not adapted:
        raise ArtifactError("the model has no adapters to save. Call graftlm.add_lora first.")
    if base_name is None:
        base_name = str(getattr(model, "name_or_path", ""))
    bases = base_modules(model)
    stacks = {n: base for n in adapted if isinstance(base := bases[n], ExpertStack)}
    places = places_in_peft(model, stacks)
    states = {name: module.peft_state() for name, module in adapted.items()}
    tensors = {
        f"{places.get(name, name)}.{suffix}": tensor
        for name, state in as_peft_writes(states, model, stacks).items()
        for suffix, tensor in state.items()
    }
    content = {
        PREFIX + key: tensor.cpu().contiguous()
        for key, tensor in as_peft_renames(model, tensors).items()
    }
    with atomic_write(Path(path) / WEIGHTS_NAME) as temporary:
        # Not by way of bytes: a table that trains whole would be twice in memory once more.
        safetensors.torch.save_file(content, temporary, {"format": "pt"})
    write_json(Path(path) / CONFIG_NAME, adapter_config(model, base_name, adapter), sort_keys=True)
    if tokenizer is not None:
        save_tokenizer(tokenizer, path, alone=True)


def load_adapter(model: nn.Module, path: str | Path, *, name: str = DEFAULT) -> LoRAReport:
    """Load the adapter at ``path`` into ``model``, in place. Freezes the base, not the adapter.

    An existing adapter of the same name is overwritten if it has the same shape and scaling, so
    that an optimiser keeps its parameters; otherwise it is replaced. If the model has adapters of
    another name, the new one starts inactive; see `graftlm.adapters.activate`.

    Args:
        model: the base model, plain or in a weight format.
        path: a folder in PEFT's format, or a run folder.
        name: the name of the adapter in this model.

    Raises:
        ArtifactError: a file is missing or corrupt, a tensor is missing, unexpected or of another
            shape, the adapter is of no registered variant, or the model was read from a folder
            with other weights than the adapter's run records. The model is unchanged.
    """
    folder = adapter_folder(path)
    _put(model, folder, read_config(folder), _read_tensors(folder), name)
    return describe(model, adapter=name)


def map_adapter(model: nn.Module, path: str | Path) -> Callable[[], None]:
    """`load_adapter` for a model without values, whose parameters become views of the file.

    Returns:
        Releases the memory of what was read of the file; the next use reads it again.
    """
    folder = adapter_folder(path)
    config, file = read_config(folder), _require_file(folder)
    try:
        tensors = Checkpoint(folder, file.name)
    except ModelError as error:
        raise ArtifactError(str(error)) from error
    _put(model, folder, config, {key: tensors.map(key) for key in tensors}, DEFAULT)
    return tensors.forget


def _put(
    model: nn.Module, folder: Path, config: AdapterConfig, tensors: Mapping[str, Tensor], name: str
) -> None:
    base = folder_read(model)
    if base is not None:
        require_same_base(folder, base)
    tensors = as_in_model(model, _bare(tensors))
    states, others = _states(tensors, config.variant)
    with_biases(states, others, config)
    rows = first_rows(model)
    undo = grow_vocabulary(model, wanted_rows(model, config, others))
    try:
        _load(model, config, states, others, rows, name, folder)
    except BaseException:
        undo()
        raise


def _load(
    model: nn.Module,
    config: AdapterConfig,
    states: States,
    others: dict[str, Tensor],
    rows_before: int,
    name: str,
    folder: Path,
) -> None:
    modules = adaptable_modules(model)
    states, config = with_split_experts(_with_experts(states, config, model), config, model)
    problems = problems_of(model, config, modules, states)
    parts, own, more = trained_in_file(model, config, others, {*states}, rows_before)
    problems += more
    problems += stray_tensors(others, modules, model)
    if problems:
        more_of_them = f"\n… and {len(problems) - 8} more" if len(problems) > 8 else ""
        listed = "\n".join(problems[:8]) + more_of_them
        raise ArtifactError(f"{folder} does not fit the model:\n{listed}")
    targets = [
        Target(place, module, rank_of(config, place), alpha_of(config, place))
        for place, module in modules.items()
        if place in states
    ]
    if not already_there(model, targets, parts, config, name):
        if name in adapter_names(model):
            remove(model, name)
        biases = Biases(config.bias != "none", config.lora_bias)
        attach(
            *(model, targets, config.lora_dropout, config.use_rslora, config.variant, name),
            *(biases, parts),
        )
    for place, adapter in lora_modules(model, name).items():
        adapter.load_peft_state((states | own)[place])


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = _require_file(folder)
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{path} is not a valid safetensors file: {error}. "
            "The file may be cut off; fetch or save the adapter again."
        ) from error


def _require_file(folder: Path) -> Path:
    path = folder / WEIGHTS_NAME
    if not path.exists():
        if (folder / "adapter_model.bin").exists():
            raise ArtifactError(
                f"{folder} holds its tensors as a pickle (adapter_model.bin), which can run code "
                "when opened and is never read. Load it with PEFT where you trust it, and save it "
                "again with save_pretrained."
            )
        raise ArtifactError(f"{path} is missing; the adapter folder is incomplete")
    return path


def _bare(written: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By key without PEFT's prefix, which may be missing; one that is there twice keeps it."""
    tensors: dict[str, Tensor] = {}
    for key, tensor in written.items():
        bare = without_compile_prefix(key.removeprefix(PREFIX))
        tensors[key if bare in tensors else bare] = tensor
    return tensors


def _states(tensors: Mapping[str, Tensor], variant: str) -> tuple[States, dict[str, Tensor]]:
    """The adapter's tensors by module and end of key, and the other tensors by key.

    Keys may contain the adapter's name, as in PEFT's state dictionaries.
    """
    suffixes = suffix_patterns(variant)
    states: States = {}
    others: dict[str, Tensor] = {}
    for bare, tensor in tensors.items():
        matches = ((suffix, pattern.fullmatch(bare)) for suffix, pattern in suffixes.items())
        module, suffix = next(((m["module"], suffix) for suffix, m in matches if m), ("", ""))
        if not suffix or suffix in states.get(module, {}):
            others[bare] = tensor
        else:
            states.setdefault(module, {})[suffix] = tensor
    return states, others


def _with_experts(states: States, config: AdapterConfig, model: nn.Module) -> States:
    """The states with those of fused experts under the names of their parameters."""
    stacks = config.targeted_experts(model)
    names = {place: name for name, place in places_in_peft(model, stacks).items()}
    fused = {names[place]: state for place, state in states.items() if place in names}
    others = {place: state for place, state in states.items() if place not in names}
    return others | turned_round(fused, model, stacks, config.peft_version)
