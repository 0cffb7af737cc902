"""Adapters on disk in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

Keys are `base_model.model.<module>.lora_A.weight` [r, in] and `….lora_B.weight` [out, r]; for an
embedding `….lora_embedding_A` [r, vocab] and `….lora_embedding_B` [dim, r]. No other tensor is
written. Reading is strict: every tensor must have its place, and every place its tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from graftlm.adapters import LoRAReport, lora_modules, remove
from graftlm.adapters.adapter_folder import adapter_folder
from graftlm.adapters.inject import attach
from graftlm.adapters.lora_embedding import LoRAEmbedding
from graftlm.adapters.lora_linear import adapter_scaling, linear_shape
from graftlm.adapters.peft_config import CONFIG_NAME, AdapterConfig, adapter_config, read_config
from graftlm.adapters.report import describe
from graftlm.adapters.targets import Target, adaptable, base_modules, pattern_value
from graftlm.errors import ArtifactError, near_matches
from graftlm.files import atomic_write, write_json
from graftlm.frozen.int8_rows import Int8Embedding, Int8Output
from graftlm.models.save import save_tokenizer

__all__ = ["load_adapter", "save_adapter"]

WEIGHTS_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."
LINEAR_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(\.[^.]+)?\.weight")
EMBEDDING_KEY = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<side>[AB])(\.[^.]+)?")
COPY_KEY = re.compile(r"(?P<module>.+?)(\.base_layer)?\.weight")
Pairs = dict[str, dict[str, Tensor]]


def save_adapter(
    model: nn.Module,
    path: str | Path,
    *,
    base_name: str | None = None,
    tokenizer: Any = None,
) -> None:
    """Write the adapters of ``model`` so that PEFT, vLLM and graftlm load them.

    Each file appears whole; other files in the folder are left alone.

    Args:
        model: a model with adapters.
        path: the folder to write into.
        base_name: what the base model is called; by default what transformers calls it.
        tokenizer: the one trained with, to be kept beside the weights with its chat template.

    Raises:
        ArtifactError: the model has no adapters.
        ResourceError: the folder cannot be written.
    """
    adapted = lora_modules(model)
    if not adapted:
        raise ArtifactError("the model has no adapters to save. Call graftlm.add_lora first.")
    if base_name is None:
        base_name = str(getattr(model, "name_or_path", ""))
    tensors = {}
    for name, module in adapted.items():
        a, b = _keys(name, isinstance(module, LoRAEmbedding))
        tensors[a], tensors[b] = module.lora_A.detach(), module.lora_B.detach()
    content = safetensors.torch.save(
        {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, {"format": "pt"}
    )
    with atomic_write(Path(path) / WEIGHTS_NAME) as temporary:
        temporary.write_bytes(content)
    write_json(Path(path) / CONFIG_NAME, adapter_config(model, base_name), sort_keys=True)
    if tokenizer is not None:
        save_tokenizer(tokenizer, path)


def load_adapter(model: nn.Module, path: str | Path) -> LoRAReport:
    """Put the adapter at ``path`` into ``model``, in place; the base freezes, the adapter trains.

    Adapters that are already there are overwritten where they have the same shape and scaling (an
    optimiser keeps its parameters), and replaced otherwise.

    Args:
        model: the base model, plain or in NF4.
        path: a folder in PEFT's format, or a run folder.

    Raises:
        ArtifactError: a file is missing or corrupt, a tensor is missing, unexpected or of another
            shape, or the adapter is not plain LoRA. The model is unchanged.
    """
    folder = adapter_folder(path)
    config = read_config(folder)
    modules = base_modules(model)
    pairs, others = _pairs(_read_tensors(folder))
    problems = _problems(model, config, modules, pairs)
    problems += [problem for key, t in others.items() if (problem := _stray(key, t, modules))]
    if problems:
        more = f"\n… and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ArtifactError(f"{folder} does not fit the model:\n" + "\n".join(problems[:8]) + more)
    targets = [
        Target(name, module, pairs[name]["A"].shape[0], _alpha(config, name))
        for name, module in modules.items()
        if name in pairs
    ]
    if not _already_there(model, targets, config):
        remove(model)
        attach(model, targets, config.lora_dropout, config.use_rslora)
    _fill(model, pairs)
    return describe(model)


@torch.no_grad()
def _fill(model: nn.Module, pairs: Pairs) -> None:
    for name, module in lora_modules(model).items():
        for side, tensor in pairs[name].items():
            parameter: nn.Parameter = getattr(module, f"lora_{side}")
            if parameter.is_meta:  # a model of names and shapes only, as merging on disk uses
                setattr(module, f"lora_{side}", nn.Parameter(tensor.float()))
            else:
                parameter.copy_(tensor)


def _keys(name: str, embedding: bool) -> tuple[str, str]:
    if embedding:
        return f"{PREFIX}{name}.lora_embedding_A", f"{PREFIX}{name}.lora_embedding_B"
    return f"{PREFIX}{name}.lora_A.weight", f"{PREFIX}{name}.lora_B.weight"


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


def _pairs(tensors: Mapping[str, Tensor]) -> tuple[Pairs, dict[str, Tensor]]:
    """Sort tensors into A and B by module name, and the rest by key.

    Keys may lack PEFT's prefix, or carry the adapter's name before `.weight`, as in-memory
    dictionaries of PEFT do.
    """
    pairs: Pairs = {}
    others: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        bare = key.removeprefix(PREFIX).replace("_orig_mod.", "")
        match = LINEAR_KEY.fullmatch(bare) or EMBEDDING_KEY.fullmatch(bare)
        if match is None or match["side"] in pairs.get(match["module"], {}):
            others[key] = tensor
        else:
            pairs.setdefault(match["module"], {})[match["side"]] = tensor
    return pairs, others


def _problems(
    model: nn.Module, config: AdapterConfig, modules: Mapping[str, nn.Module], pairs: Pairs
) -> list[str]:
    targeted = config.targeted(model)
    problems = []
    for name in targeted or ():
        if name not in pairs:
            a, b = _keys(name, isinstance(modules[name], nn.Embedding))
            problems.append(f"missing: {a} and {b} (its adapter_config.json targets {name})")
    if not pairs:
        problems.append("it holds no LoRA tensors")
    for name, pair in pairs.items():
        module = modules.get(name)
        if isinstance(module, Int8Embedding | Int8Output):
            problems.append(f"{name} is held in 8 bits here: load the model with embeddings=keep")
            continue
        if module is None or not adaptable(module):
            hint = near_matches(name, [n for n, m in modules.items() if adaptable(m)])
            problems.append(f"unexpected: tensors for {name}, which is no such layer here{hint}")
            continue
        if targeted is not None and name not in targeted:
            problems.append(f"unexpected: tensors for {name}, which its config does not target")
        rank = pattern_value(config.rank_pattern, name, config.r)
        keys = _keys(name, isinstance(module, nn.Embedding))
        for key, side, shape in zip(keys, "AB", _shapes(module, rank), strict=True):
            if side not in pair:
                problems.append(f"missing: {key}")
            elif tuple(pair[side].shape) != shape:
                found = list(pair[side].shape)
                problems.append(f"{key} has shape {found}, expected {list(shape)} (rank {rank})")
    return problems


def _shapes(module: nn.Module, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
    if isinstance(module, nn.Embedding):
        return (rank, module.num_embeddings), (module.embedding_dim, rank)
    rows, columns = linear_shape(module) or (0, 0)
    return (rank, columns), (rows, rank)


def _stray(key: str, tensor: Tensor, modules: Mapping[str, nn.Module]) -> str | None:
    """What is wrong with a tensor that is no adapter matrix; PEFT may copy untrained embeddings."""
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


def _already_there(model: nn.Module, targets: list[Target], config: AdapterConfig) -> bool:
    def told(name: str, rank: int, alpha: float, rslora: bool) -> tuple[str, int, float]:
        return name, rank, adapter_scaling(rank, alpha, rslora)

    here = [told(n, m.rank, m.alpha, m.use_rslora) for n, m in lora_modules(model).items()]
    return here == [told(t.name, t.rank, t.alpha, config.use_rslora) for t in targets]
