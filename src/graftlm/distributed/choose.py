"""The engine of a run, by the setting `distributed`."""

from __future__ import annotations

from graftlm.distributed.engine import Engine
from graftlm.distributed.group import current_group

__all__ = ["engine_of"]


def engine_of(distributed: str) -> Engine:
    """The engine; in one process the setting has no effect.

    Args:
        distributed: ``ddp`` or ``fsdp``.
    """
    if current_group().processes.world_size == 1:
        return Engine()
    if distributed == "fsdp":
        from graftlm.distributed.sharded import Sharded

        return Sharded()
    from graftlm.distributed.replicated import Replicated

    return Replicated()
