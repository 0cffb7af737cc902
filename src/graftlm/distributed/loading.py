"""Which part of the frozen weights a process loads, if they are sharded.

With `distributed: fsdp` each process reads and quantises only the rows that it will hold, so that
the processes of a machine hold one copy together. What an adapter begins with may need whole
matrices; then each process loads the whole model, and says so.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from graftlm.config import RunConfig
from graftlm.distributed.group import Group, current_group
from graftlm.models.shares import Shares

__all__ = ["needs_whole", "shares_of"]

DRAWN = ("default", "gaussian", "orthogonal")
"""The values of `lora.init` that do not depend on the base's."""


def shares_of(config: RunConfig) -> Shares | None:
    """What this process loads of the model; ``None``: all of it."""
    group = current_group()
    if group.processes.world_size == 1 or config.distributed != "fsdp":
        return None
    if (why := needs_whole(config)) is not None:
        print(f"note: each process first loads the whole model, since {why}", file=sys.stderr)
        return None
    return Shares(_Share(group))


def needs_whole(config: RunConfig) -> str | None:
    """The setting that reads whole matrices; ``None`` if there is none."""
    lora = config.lora
    reads = {
        f"lora.init={lora.init} reads them": lora.init not in DRAWN,
        f"lora.variant={lora.variant} reads their norms": lora.variant != "lora",
        "data.new_tokens makes the table longer": bool(config.data.new_tokens),
        "lora.target_parameters puts experts elsewhere": bool(lora.target_parameters),
        "model.embeddings=int8 compares logits": config.model.embeddings == "int8",
    }
    return next((what for what, is_so in reads.items() if is_so), None)


class _Share:
    """The rank of this process among the group's; see `graftlm.frozen.share.Share`."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self.rank, self.world_size = group.processes.rank, group.processes.world_size

    def joined(self, part: Tensor) -> Tensor:
        """The parts of all processes, one below the other, on the device of this one."""
        rows = [int(count) for (count,) in self._group.gather([part.shape[0]])]
        even = torch.zeros((max(rows), *part.shape[1:]), dtype=part.dtype)
        even[: part.shape[0]] = part
        parts = self._group.gather_tensors(even)
        whole = torch.cat([one[:count] for one, count in zip(parts, rows, strict=True)])
        return whole.to(part.device)
