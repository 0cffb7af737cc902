"""Fused experts in a weight format on disk: one stored weight for each expert.

    model.layers.0.mlp.experts.gate_up_proj.7      the prefix of expert 7, in the format's own form

The name is that of the parameter in transformers 5. Other libraries have no form for fused experts
in this format, and transformers would give them random values and go on. So a tensor of one element
has the parameter's own name: transformers refuses it for its size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from graftlm.errors import ModelError
from graftlm.frozen.checkpoint_format import CheckpointFormat
from graftlm.frozen.experts import FrozenExperts

__all__ = ["expert_prefixes", "open_experts", "write_experts"]


def write_experts(
    stack: FrozenExperts, name: str, disk_form: type[CheckpointFormat]
) -> dict[str, Tensor]:
    """The tensors to store for the fused parameter ``name``."""
    tensors = {name: torch.zeros(1, dtype=torch.uint8)}
    for expert, weight in enumerate(stack.matrices()):
        tensors |= disk_form.write(weight, f"{name}.{expert}")
    return tensors


def expert_prefixes(prefixes: Iterable[str], names: Iterable[str]) -> dict[str, dict[int, str]]:
    """For each of the fused parameters ``names``, the stored weights that are its experts."""
    known, found = set(names), dict[str, dict[int, str]]()
    for prefix in prefixes:
        name, _, number = prefix.rpartition(".")
        if name in known and number.isdigit():
            found.setdefault(name, {})[int(number)] = prefix
    return found


def open_experts(
    tensors: Mapping[str, Tensor],
    prefixes: Mapping[int, str],
    shape: tuple[int, int, int],
    transposed: bool,
    disk_form: type[CheckpointFormat],
) -> FrozenExperts:
    """Read the experts of one parameter.

    Raises:
        ModelError: an expert is missing, or its matrix has another shape.
    """
    name = next(iter(prefixes.values())).rpartition(".")[0]
    if missing := sorted(set(range(shape[0])) - prefixes.keys()):
        raise ModelError(f"{name} lacks expert {missing[0]} of {shape[0]}; fetch the folder again")
    weights = [disk_form.open(tensors, prefixes[expert]) for expert in range(shape[0])]
    for expert, weight in enumerate(weights):
        if weight.shape != shape[1:]:
            raise ModelError(
                f"{name}.{expert}: the checkpoint holds {list(weight.shape)}, the model of its "
                f"config.json has {list(shape[1:])}. Weights and config.json are of different "
                "models."
            )
    return FrozenExperts(weights, transposed)
