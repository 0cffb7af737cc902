"""Which frozen tensors FSDP2 gathers together: those of a layer, of the table, and the rest.

This file imports nothing of torch.distributed, since a plan asks it as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from graftlm.frozen.experts import FrozenExperts
from graftlm.frozen.stored_weight import StoredWeight

__all__ = ["group_sizes", "groups_of"]


def groups_of(model: Any) -> list[nn.Module]:
    """The modules whose frozen tensors are gathered together, the outermost last.

    A group has the tensors of its module that are in no group before it. An output head that is
    tied to the table belongs to the outermost group, together with the table.
    """
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    apart = [table] if _weights_of(table).isdisjoint(_weights_of(head)) else []
    return [*_layers(model), *apart, model]


def group_sizes(model: Any, dtype: torch.dtype) -> list[int]:
    """Bytes of each group of a model without adapters.

    Args:
        model: on the meta device; what is not in a weight format may have another type there.
        dtype: the type that this has in the run.
    """
    sizes, seen = [], set[int]()
    for group in groups_of(model):
        size = 0
        for module in group.modules():
            dense: list[Tensor] = list(module.parameters(recurse=False))
            stored: list[Tensor] = []
            if isinstance(module, StoredWeight | FrozenExperts):
                stored += module.buffers(recurse=False)
            for tensor in (*dense, *stored):
                if tensor.ndim and id(tensor) not in seen:
                    seen.add(id(tensor))
                    is_dense = any(tensor is one for one in dense)
                    size += tensor.numel() * (dtype if is_dense else tensor.dtype).itemsize
        sizes.append(size)
    return sizes


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The entries of each outermost list of modules: the layers of a model."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)


def _weights_of(module: nn.Module | None) -> set[torch.Tensor]:
    return set() if module is None else set(module.parameters())
