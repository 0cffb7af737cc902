"""The memory of one of several processes, from the trace of its own rows in one process.

DDP     the whole model. The reducer keeps the gradients' memory for the whole run.
FSDP2   1/N of the frozen weights. Besides, as temporary memory while a layer computes, the whole
        outermost group (table, head), and two layers: its own, and what was gathered last or is
        gathered next.

Adapters, gradients and the optimiser's moments are whole in every process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from graftlm.planning.extrapolate import Trace
from graftlm.planning.timeline import Peak

__all__ = ["LAYERS_AT_ONCE", "peak_of_rank", "share_of"]

LAYERS_AT_ONCE = 2
"""Groups in memory while one computes: FSDP2 frees a gathered copy when the next one is there."""
GRADIENT = 4
"""Bytes of a trained parameter's gradient."""


def share_of(nbytes: int, processes: int) -> int:
    """The largest share of so many bytes."""
    return -(-nbytes // processes)


def peak_of_rank(trace: Trace, processes: int, groups: Sequence[int]) -> Peak:
    """The peak of one process.

    Args:
        trace: a step with the rows of this process, and with all weights.
        processes: how many there are.
        groups: bytes of each group of frozen tensors, the outermost last; none under DDP.
    """
    peaks = [_adjusted(peak, trace, processes, groups) for peak in trace.peaks.values()]
    return max(peaks, key=lambda peak: peak.nbytes)


def _adjusted(peak: Peak, trace: Trace, processes: int, groups: Sequence[int]) -> Peak:
    components = dict(peak.components)
    components["gradients"] = max(
        components.get("gradients", 0), GRADIENT * trace.trainable_parameters
    )
    if groups:
        for name in ("weights", "quantization_state"):
            components[name] = share_of(components.get(name, 0), processes)
        *inner, outermost = groups
        gathered = outermost + LAYERS_AT_ONCE * max(inner, default=0)
        components["temporary"] = components.get("temporary", 0) + gathered
    return dataclasses.replace(peak, components=components)
