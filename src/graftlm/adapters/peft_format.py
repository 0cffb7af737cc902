"""Adapters on disk in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

A key is `base_model.model.<module>.<suffix>`. The adapter's variant defines suffixes and shapes
(`Adapter.peft_keys`, `peft_shapes`). No other tensor is written. Reading is strict: every tensor
must belong to a parameter, and every parameter needs a tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from graftlm._compat.compiled import without_compile_prefix
from graftlm.adapters.adapted import (
    adaptable_modules,
    adapter_names,
    base_modules,
    lora_modules,
)
from graftlm.adapters.adapter import DEFAULT, adapter_class, adapter_scaling
from graftlm.adapters.adapter_folder import adapter_folder
from graftlm.adapters.inject import attach, remove
from graftlm.adapters.peft_config import CONFIG_NAME, AdapterConfig, adapter_config, read_config
from graftlm.adapters.peft_expert_keys import places_in_peft, turned_round
from graftlm.adapters.report import LoRAReport, describe
from graftlm.adapters.split_experts import with_split_experts
from graftlm.adapters.targets import Target, adaptable, matching, pattern_value
from graftlm.adapters.variant_of_file import WEIGHTS_NAME, suffix_patterns
from graftlm.errors import ArtifactError, near_matches
from graftlm.files import atomic_write, write_json
from graftlm.frozen.embedding import FrozenEmbedding, FrozenOutput
from graftlm.frozen.experts import ExpertStack
from graftlm.models.save import save_tokenizer

__all__ = ["load_adapter", "save_adapter"]

PREFIX = "base_model.model."
COPY_KEY = re.compile(r"(?P<module>.+?)(\.base_layer)?\.weight")
States = dict[str, dict[str, Tensor]]  # by module, by the end of the key


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
    places = _places(model, adapted)
    tensors = {
        f"{PREFIX}{places.get(name, name)}.{suffix}": tensor
        for name, module in adapted.items()
        for suffix, tensor in module.peft_state().items()
    }
    content = safetensors.torch.save(
        {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, {"format": "pt"}
    )
    with atomic_write(Path(path) / WEIGHTS_NAME) as temporary:
        temporary.write_bytes(content)
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
            shape, or the adapter is of no registered variant. The model is unchanged.
    """
    folder = adapter_folder(path)
    config = read_config(folder)
    modules = adaptable_modules(model)
    states, others = _states(_read_tensors(folder), config.variant)
    states, config = with_split_experts(_with_experts(states, config, model), config, model)
    problems = _problems(model, config, modules, states)
    problems += [problem for key, t in others.items() if (problem := _stray(key, t, modules))]
    if problems:
        more = f"\n… and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ArtifactError(f"{folder} does not fit the model:\n" + "\n".join(problems[:8]) + more)
    targets = [
        Target(place, module, _rank(config, place), _alpha(config, place))
        for place, module in modules.items()
        if place in states
    ]
    if not _already_there(model, targets, config, name):
        if name in adapter_names(model):
            remove(model, name)
        attach(model, targets, config.lora_dropout, config.use_rslora, config.variant, name)
    for place, adapter in lora_modules(model, name).items():
        adapter.load_peft_state(states[place])
    return describe(model, adapter=name)


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS_NAME
    if not path.exists():
        if (folder / "adapter_model.bin").exists():
            raise ArtifactError(
                f"{folder} holds its tensors as a pickle (adapter_model.bin), which can run code "
                "when opened and is never read. Load it with PEFT where you trust it, and save it "
                "again with save_pretrained."
            )
        raise ArtifactError(f"{path} is missing; the adapter folder is incomplete")
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{path} is not a valid safetensors file: {error}. "
            "The file may be cut off; fetch or save the adapter again."
        ) from error


def _states(tensors: Mapping[str, Tensor], variant: str) -> tuple[States, dict[str, Tensor]]:
    """The adapter's tensors by module and end of key, and the other tensors by key.

    Keys may lack PEFT's prefix, or contain the adapter's name, as in PEFT's state dictionaries.
    """
    suffixes = suffix_patterns(variant)
    states: States = {}
    others: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        bare = without_compile_prefix(key.removeprefix(PREFIX))
        matches = ((suffix, pattern.fullmatch(bare)) for suffix, pattern in suffixes.items())
        module, suffix = next(((m["module"], suffix) for suffix, m in matches if m), ("", ""))
        if not suffix or suffix in states.get(module, {}):
            others[key] = tensor
        else:
            states.setdefault(module, {})[suffix] = tensor
    return states, others


def _places(model: nn.Module, adapted: Iterable[str]) -> dict[str, str]:
    bases = base_modules(model)
    return places_in_peft(model, [n for n in adapted if isinstance(bases[n], ExpertStack)])


def _with_experts(states: States, config: AdapterConfig, model: nn.Module) -> States:
    """The states with those of fused experts under the names of their parameters."""
    stacks = config.targeted_experts(model)
    names = {place: name for name, place in places_in_peft(model, stacks).items()}
    fused = {names[place]: state for place, state in states.items() if place in names}
    others = {place: state for place, state in states.items() if place not in names}
    return others | turned_round(fused, stacks, config.peft_version)


def _problems(
    model: nn.Module, config: AdapterConfig, modules: Mapping[str, nn.Module], states: States
) -> list[str]:
    targeted = config.targeted(model)
    every = [f"{name}.weight" for name in modules] + [n for n in modules if n in (targeted or ())]
    problems = [
        f"its adapter_config.json names the parameter {entry}, which cannot be adapted here"
        for entry in config.target_parameters
        if not matching(every, [entry])
    ]
    for name in targeted or ():
        if name not in states:
            keys = " and ".join(_shapes(config, name, modules[name]))
            problems.append(f"missing: {keys} (its adapter_config.json targets {name})")
    if not states:
        problems.append("it holds no LoRA tensors")
    fitting = [name for name, module in modules.items() if adaptable(module, config.variant)]
    for name, state in states.items():
        module = modules.get(name)
        if isinstance(module, FrozenEmbedding | FrozenOutput):
            problems.append(f"{name} is held in 8 bits here: load the model with embeddings=keep")
            continue
        if module is None or not adaptable(module, config.variant):
            hint = near_matches(name, fitting)
            problems.append(f"unexpected: tensors for {name}, which is no such layer here{hint}")
            continue
        if targeted is not None and name not in targeted:
            problems.append(f"unexpected: tensors for {name}, which its config does not target")
        shapes = _shapes(config, name, module)
        whole = (f"{PREFIX}{name}.{suffix}" for suffix in state)
        problems += [f"unexpected: {key}" for key in whole if key not in shapes]
        for key, shape in shapes.items():
            tensor = state.get(key.removeprefix(f"{PREFIX}{name}."))
            if tensor is None:
                problems.append(f"missing: {key}")
            elif not bool(torch.isfinite(tensor).all()):
                problems.append(f"{key} holds NaN or infinite numbers")
            elif tuple(tensor.shape) != shape:
                problems.append(
                    f"{key} has shape {list(tensor.shape)}, expected {list(shape)} "
                    f"(rank {_rank(config, name)})"
                )
    return problems


def _shapes(config: AdapterConfig, name: str, module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The tensors that belong to the module ``name``, by their whole key."""
    cls = adapter_class(config.variant, module)
    assert cls is not None, f"{name} was checked before"
    shapes = cls.peft_shapes(module, _rank(config, name))
    return {f"{PREFIX}{name}.{suffix}": shape for suffix, shape in shapes.items()}


def _stray(key: str, tensor: Tensor, modules: Mapping[str, nn.Module]) -> str | None:
    """The problem with a tensor of no adapter; ``None`` for an untrained copy of an embedding."""
    match = COPY_KEY.fullmatch(key.removeprefix(PREFIX))
    weight = getattr(modules.get(match["module"]) if match else None, "weight", None)
    if not isinstance(weight, Tensor):
        return f"unexpected: {key}"
    if weight.is_meta or (
        weight.shape == tensor.shape and torch.equal(weight.detach().cpu(), tensor.to(weight.dtype))
    ):
        return None
    return (
        f"unexpected: {key} {list(tensor.shape)} differs from the model's own weight "
        f"{list(weight.shape)}; fully trained or resized embeddings are not supported"
    )


def _alpha(config: AdapterConfig, name: str) -> float:
    return pattern_value(config.alpha_pattern, name, config.lora_alpha)


def _rank(config: AdapterConfig, name: str) -> int:
    return pattern_value(config.rank_pattern, name, config.r)


def _already_there(
    model: nn.Module, targets: list[Target], config: AdapterConfig, name: str
) -> bool:
    if name not in adapter_names(model):
        return False
    here = [(n, m.variant, m.saved_rank, m.scaling) for n, m in lora_modules(model, name).items()]
    return here == [
        (t.name, config.variant, t.rank, adapter_scaling(t.rank, t.alpha, config.use_rslora))
        for t in targets
    ]
