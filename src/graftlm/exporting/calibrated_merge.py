"""Merges into a weight format that are fitted to calibration rows.

An adapter that was trained on a base in 4 bits has learned two things: the task, and to make up for
the errors of that base. So there are two aims.

    F-feedback            the live model, Q⁻¹Q(W) + Δ. Δ is far below a step of the grid, so the
                          codes start from Q(W + Δ) and are refined (`frozen/nf4/refine.py`).
    F-feedback-original   W + Δ, by error feedback (`frozen/nf4/error_feedback.py`). It keeps the
                          task and loses what was learned of the base's errors, so its answers are
                          further from the live model's. It is for a tune of which the first one
                          keeps too little.

After training on 16 bits both are one: W + Δ is the live model, and error feedback fits to it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from graftlm.exporting.candidates import MergeSource
from graftlm.exporting.merge_rows import MergeRows
from graftlm.exporting.merged_weights import MergedWeights, StoredWeights
from graftlm.frozen.formats import format_named
from graftlm.models.calibrate import calibrate
from graftlm.models.stored_folder import STORED_BYTES, storable_layers

__all__ = ["calibrated_bytes", "calibrated_kinds", "calibrated_merge"]


def calibrated_kinds(source: MergeSource) -> list[str]:
    """The merges that are fitted to calibration rows, in the order to try them."""
    kinds = [f"{source.to}-feedback"]
    return kinds if source.trained != source.to else [*kinds, f"{source.to}-feedback-original"]


def calibrated_bytes(source: MergeSource) -> int:
    """About how many bytes lie on the disk until the merge is written."""
    empty = source.weights.empty.state_dict()
    weights = sum(empty[name].numel() for name in storable_layers(source.weights))
    return int(STORED_BYTES * weights) * len(calibrated_kinds(source))


def calibrated_merge(kind: str, source: MergeSource, rows: MergeRows, spill: Path) -> StoredWeights:
    """The weights of a merge that is fitted to the calibration rows.

    Args:
        kind: of `calibrated_kinds`.
        source: the adapter and its base.
        rows: with calibration rows.
        spill: an existing folder for the weights; it must live as long as they are read.
    """
    refined = source.trained == source.to and kind.endswith("-feedback")
    exact = MergedWeights(source.base() if refined else source.original(), source.updates)
    plain = source.stored(f"{source.to}-original")
    folder = spill / kind
    folder.mkdir()
    made = calibrate(
        source.weights,
        exact,
        storable_layers(source.weights),
        rows.calibration,
        rows.pad_id,
        format_named(source.to),
        source.settings,
        folder,
        plain.dtype,
        plain.stored if refined else None,
    )
    return dataclasses.replace(plain, made=made)
