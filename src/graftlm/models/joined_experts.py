"""Fused experts whose checkpoint stores every expert apart, as most checkpoints do.

    experts.gate_up_proj[e] [2 F, H]   =   experts.e.gate_proj.weight [F, H]
                                           experts.e.up_proj.weight   [F, H]     one below the other

A few store both projections of all experts as one tensor, their rows in turn (Inkling):

    experts.w13_weight[e] [2 F, H]     =   gate row 0, up row 0, gate row 1, …

transformers joins the tensors while it loads a model. Code that works on the files, tensor by
tensor, reads the joined parameter by `joined_experts` and takes it apart again by its `split`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping

from graftlm._compat.loader import (
    Concatenate,
    ConversionOps,
    Interleave,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)
from graftlm.models.experts import expert_weights

__all__ = ["JoinedExperts", "ReorderedExperts", "joined_experts"]

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclasses.dataclass(frozen=True)
class JoinedExperts:
    """The checkpoint's keys of one fused parameter [E, out, in].

    Attributes:
        keys: for each expert the keys whose tensors make its matrix, from the top.
    """

    keys: tuple[tuple[str, ...], ...]

    def read(self, read: Callable[[str], Tensor]) -> Tensor:
        """The parameter; ``read`` gives the tensor of a key."""
        first = torch.cat([read(key) for key in self.keys[0]])
        joined = first.new_empty(len(self.keys), *first.shape)
        joined[0] = first
        for place, keys in zip(joined[1:], self.keys[1:], strict=True):
            torch.cat([read(key) for key in keys], out=place)
        return joined

    def split(self, joined: Tensor) -> dict[str, Tensor]:
        """The tensor of each key: views of the parameter."""
        return {
            key: part
            for matrix, keys in zip(joined, self.keys, strict=True)
            for key, part in zip(keys, matrix.chunk(len(keys)), strict=True)
        }


@dataclasses.dataclass(frozen=True)
class ReorderedExperts(JoinedExperts):
    """The one key of a fused parameter whose rows the checkpoint has in another order.

    Attributes:
        operations: from the tensor of the checkpoint to the parameter.
    """

    operations: tuple[ConversionOps, ...]

    def read(self, read: Callable[[str], Tensor]) -> Tensor:
        """The parameter; ``read`` gives the tensor of a key."""
        return _through(self.operations, read(self.keys[0][0]))

    def split(self, joined: Tensor) -> dict[str, Tensor]:
        """The tensor of the key."""
        back = [one.reverse_op for one in reversed(self.operations)]
        return {self.keys[0][0]: _through(back, joined)}


def _through(operations: Iterable[ConversionOps], tensor: Tensor) -> Tensor:
    for one in operations:
        values: Any = one.convert({"": [tensor]}, source_patterns=[""], target_patterns=[""])
        tensor = values[""]  # not the list that its annotation says
    return tensor


def joined_experts(
    model: PreTrainedModel, keys: Iterable[str], sizes: Mapping[str, int] | None = None
) -> dict[str, JoinedExperts]:
    """The fused parameters of ``model`` that a checkpoint with these keys stores apart.

    One that transformers puts together in another way is left out.

    Args:
        model: the model.
        keys: the names of the checkpoint's tensors.
        sizes: the number of experts of each fused parameter; by default asked of the model.
    """
    if sizes is None:
        sizes = {name: weight.shape[0] for name, weight in expert_weights(model).items()}
    conversions = get_model_conversion_mapping(model)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    orders = {
        pattern: (order, len(converter.source_patterns))
        for converter in converters
        if _stacks(converter)
        for order, pattern in enumerate(converter.source_patterns)
    }
    reorders = {
        converter.source_patterns[0]: tuple(converter.operations)
        for converter in converters
        if _reorders(converter)
    }
    parameters = model.state_dict()
    result: dict[str, JoinedExperts] = {}
    found: dict[str, dict[tuple[int, int], str]] = {}
    widths: dict[str, int] = {}
    for key in keys:
        name, pattern = rename_source_key(
            key, renamings, converters, model.base_model_prefix, parameters
        )
        numbers = NUMBER.findall(key)
        if pattern in reorders and name in sizes:
            result[name] = ReorderedExperts(((key,),), reorders[pattern])
        if pattern in orders and name in sizes and numbers:
            order, widths[name] = orders[pattern]
            found.setdefault(name, {})[int(numbers[-1]), order] = key
    for name, parts in found.items():
        experts, width = sizes[name], widths[name]
        wanted = [[(expert, order) for order in range(width)] for expert in range(experts)]
        if len(parts) == experts * width and all(p in parts for row in wanted for p in row):
            result[name] = JoinedExperts(tuple(tuple(parts[p] for p in row) for row in wanted))
    return result


def _reorders(converter: WeightConverter) -> bool:
    """Whether a conversion only changes the order of the rows of one tensor."""
    one_to_one = len(converter.source_patterns) == len(converter.target_patterns) == 1
    return one_to_one and all(isinstance(one, Interleave) for one in converter.operations)


def _stacks(converter: WeightConverter) -> bool:
    """Whether a conversion lays matrices one below the other and stacks those of all experts."""
    merges, others = converter.operations[:1], converter.operations[1:]
    return (
        all(isinstance(one, MergeModulelist) and one.dim == 0 for one in merges)
        and len(merges) == 1
        and all(isinstance(one, Concatenate) and one.dim == 1 for one in others)
        and len(others) == (len(converter.source_patterns) > 1)
    )
