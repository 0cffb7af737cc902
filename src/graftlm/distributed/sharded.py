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

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed.fsdp
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from graftlm._compat.sharding import free_buffers_at_once
from graftlm.distributed.engine import Pass
from graftlm.distributed.group import current_group
from graftlm.distributed.groups import groups_of
from graftlm.distributed.replicated import Replicated
from graftlm.errors import ResourceError
from graftlm.frozen.experts import FrozenExperts
from graftlm.frozen.stored_weight import StoredWeight
from graftlm.models.capabilities import capabilities
from graftlm.system.placement import Placement

__all__ = ["Sharded", "is_sharded", "shard_frozen"]


class Sharded(Replicated):
    """FSDP2 over the frozen parameters, DDP over the trained ones."""

    def prepare(self, model: Any, parameters: Sequence[nn.Parameter]) -> None:
        """Shard the model unless it was loaded in shares, then wrap the trained parameters."""
        known = capabilities(model)  # measured by all processes at once, for a run of the model
        _ = known.output_head, known.keeps_sequences_apart
        if not is_sharded(model):
            shard_frozen(model, parameters)
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


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard_frozen` has cut the model."""
    cut = getattr(torch.distributed.fsdp, "FSDPModule", None)  # torch 2.6
    return cut is not None and isinstance(model, cut)


def shard_frozen(
    model: Any, trained: Sequence[nn.Parameter] = (), parts: Mapping[str, Tensor] | None = None
) -> None:
    """Leave to this process its part of each frozen tensor of ``model``, in place.

    Args:
        model: whole, or loaded in shares.
        trained: the parameters that stay whole. Adapters may also be attached afterwards.
        parts: the part of each tensor that has no values, by the name of its parameter.

    Raises:
        ResourceError: this torch cannot leave the trained parameters whole.
    """
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise ResourceError("distributed=fsdp needs torch 2.7 or later: use ddp") from error
    stored = [m for m in model.modules() if isinstance(m, StoredWeight | FrozenExperts)]
    for module in stored:
        module.hold_as_parameters()
    before = dict(model.named_parameters(remove_duplicate=False))
    placement = Placement.on(_device_of(model))
    mesh = init_device_mesh(placement.kind, (current_group().processes.world_size,))
    ignored = set(trained)
    for group in groups_of(model):
        fully_shard(group, mesh=mesh, ignored_params=ignored)
    if placement.runs_on_cpu:
        free_buffers_at_once(model)
    if parts:
        _fill(model, before, parts, mesh)
    for module in stored:
        if isinstance(module, StoredWeight):
            _ = module.frozen  # forget the whole tensors


def _fill(
    model: nn.Module,
    before: Mapping[str, nn.Parameter],
    parts: Mapping[str, Tensor],
    mesh: DeviceMesh,
) -> None:
    """Put the parts in the place of tensors without values; tied ones stay tied."""
    part_of = {id(before[name]): part for name, part in parts.items()}
    made: dict[int, nn.Parameter] = {}
    for name, old in before.items():
        if id(old) not in part_of:
            continue
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if id(old) not in made:
            part = DTensor.from_local(
                part_of[id(old)],
                mesh,
                [Shard(0)],
                run_check=False,
                shape=old.shape,
                stride=old.stride(),
            )
            made[id(old)] = nn.Parameter(part, requires_grad=False)
        setattr(module, leaf, made[id(old)])


def _device_of(model: nn.Module) -> torch.device:
    """The device of what has values."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next(tensor.device for tensor in tensors if not tensor.is_meta)
