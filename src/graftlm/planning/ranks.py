"""The memory of one of several processes, from the trace of its own rows in one process.

DDP     the whole model. The reducer keeps the gradients' memory for the whole run.
FSDP2   1/N of the frozen weights. Besides, as temporary memory while a layer computes, the whole
        outermost group (table, head), and two copies of the largest other group: the one in use,
        and the buffer of the gathering. A card keeps the buffer of the gathering before as well.

Adapters, gradients and the optimiser's moments are whole in every process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from graftlm.planning.extrapolate import Trace
from graftlm.planning.timeline import COMPONENTS, Peak

__all__ = ["peak_of_rank", "share_of"]

COPIES = 2
"""Of the group in use: its tensors, and the buffer that they were gathered in."""
GRADIENT = 4
"""Bytes of a trained parameter's gradient."""


def share_of(nbytes: int, processes: int) -> int:
    """The largest share of so many bytes."""
    return -(-nbytes // processes)


def peak_of_rank(
    trace: Trace, processes: int, groups: Sequence[int] = (), *, keeps_buffer: bool = False
) -> Peak:
    """The peak of one process.

    Args:
        trace: a step with the rows of this process, and with all weights.
        processes: how many there are.
        groups: bytes of each group of frozen tensors, the outermost last; none under DDP.
        keeps_buffer: whether the buffer of a gathering lives until the next one is done, as on a
            card.
    """
    gathered = 0
    if groups:
        *inner, outermost = groups
        largest = max(inner, default=0)
        gathered = outermost + COPIES * largest + keeps_buffer * max(largest, outermost)

    def of_rank(peak: Peak) -> Peak:
        held = {name: peak.components.get(name, 0) for name in COMPONENTS}
        held["gradients"] = max(held["gradients"], GRADIENT * trace.trainable_parameters)
        held["temporary"] += gathered
        for name in ("weights", "quantization_state") if groups else ():
            held[name] = share_of(held[name], processes)
        return dataclasses.replace(peak, components=held)

    return max(map(of_rank, trace.peaks.values()), key=lambda peak: peak.nbytes)
