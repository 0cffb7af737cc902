"""Each process holds a share of the frozen weights, by FSDP2; DDP adds up the gradients.

`torch.distributed.fsdp.fully_shard` cuts each frozen tensor along its first dimension: dense
matrices by rows, the codes and scales of a weight format as they lie in memory. A layer's shares
are gathered before the layer computes, in the forward pass and again in the backward pass, and
freed afterwards. Embedding table, last norm and output head form the outermost group; it is freed
after the backward pass. (An untied table is a group of its own.)

The adapters stay whole in every process, and so do their gradients and AdamW's moments: 16 bytes a
trained parameter. So checkpoints, clipping and the update are those of one process.

All processes must make the same passes, since each takes part in every gathering. One without a
batch left computes a row that does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from graftlm.distributed.engine import Pass
from graftlm.distributed.replicated import Replicated
from graftlm.errors import ResourceError
from graftlm.frozen.stored_weight import StoredWeight
from graftlm.models.capabilities import capabilities
from graftlm.system.placement import placement_of

__all__ = ["Sharded", "shard_frozen"]


class Sharded(Replicated):
    """FSDP2 over the frozen parameters, DDP over the trained ones."""

    def prepare(self, model: Any, parameters: Sequence[nn.Parameter]) -> None:
        """Shard the model, then wrap the trained parameters."""
        shard_frozen(model, parameters, self.group.processes.world_size)
        super().prepare(model, parameters)

    def passes(self, batches: Sequence[Any], blank: Callable[[], Any]) -> list[Pass]:
        """Equally many in every process."""
        even = self.even(batches, blank)
        return [
            Pass(one.batch, one.counts, place == len(even) - 1) for place, one in enumerate(even)
        ]

    def even(self, batches: Sequence[Any], blank: Callable[[], Any]) -> list[Pass]:
        """Equally many in every process."""
        missing = int(self.group.most(len(batches))) - len(batches)
        extra = [Pass(blank(), False, False) for _ in range(missing)]
        return [Pass(batch, True, False) for batch in batches] + extra


def shard_frozen(model: Any, trained: Sequence[nn.Parameter], world_size: int) -> None:
    """Leave to this process its share of each frozen tensor of ``model``, in place.

    Raises:
        ResourceError: this torch cannot leave the trained parameters whole.
    """
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise ResourceError("distributed=fsdp needs torch 2.7 or later: use ddp") from error
    # Both are measured on the whole model, once.
    known = capabilities(model)
    _ = known.output_head, known.keeps_sequences_apart
    stored = [module for module in model.modules() if isinstance(module, StoredWeight)]
    for module in stored:
        module.hold_as_parameters()
    mesh = init_device_mesh(placement_of(model).kind, (world_size,))
    ignored = set(trained)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    apart = [table] if _weights_of(table).isdisjoint(_weights_of(head)) else []
    for module in (*_layers(model), *apart):
        fully_shard(module, mesh=mesh, ignored_params=ignored)
    fully_shard(model, mesh=mesh, ignored_params=ignored)
    for module in stored:
        _ = module.frozen  # forget the whole tensors


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The entries of each outermost list of modules: the layers of a model."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)


def _weights_of(module: nn.Module | None) -> set[torch.Tensor]:
    return set() if module is None else set(module.parameters())
