"""When FSDP2 frees what it has gathered.

Seen in torch 2.13: `FSDPModule._set_unshard_async_op`. By default the buffer of a gathering is kept
until the next one has been copied out, so that a card gathers while it computes. A CPU gathers with
the cores that compute, so there it only takes memory.
"""

from __future__ import annotations

from typing import Any

__all__ = ["free_buffers_at_once"]


def free_buffers_at_once(model: Any) -> None:
    """Free the buffer of each gathering as soon as it has been copied out."""
    model._set_unshard_async_op(True)
