"""`graftlm.merge`: one model again, after measuring every way to make it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from graftlm.api.rows import Rows, named_rows
from graftlm.exporting.measured_merge import LEAST_KEPT, measured_merge
from graftlm.report.merge_page import write_merge_page

__all__ = ["merge"]


def merge(
    adapter: str | Path,
    out: str | Path,
    *,
    to: str = "16bit",
    base: str | None = None,
    onto: str | None = None,
    data: Rows | None = None,
    calibrate: Rows | None = None,
    least_kept: float = LEAST_KEPT,
    force: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Merge an adapter into its base on disk as `graftlm merge` does, W' = W + (α/r) B A.

    Every way to merge is measured beside the live adapter, the best is written, opened again and
    compared. (`graftlm.merge_in_place` merges the adapters of a model in memory.)

    Args:
        adapter: a PEFT adapter folder, or a run folder.
        out: the folder to create, with `merge_report.html`.
        to: ``16bit``, or the name of a weight format that has a form on disk.
        base: the base model; by default the one the adapter names.
        onto: take only the 16-bit merge onto this form of the base: ``original`` or a format.
        data: rows to compare on; by default the run's held-out rows, else its training rows, else
            a text that comes with graftlm.
        calibrate: rows that a 4-bit merge is fitted to; by default the run's.
        least_kept: the smallest acceptable share of the tune.
        force: write a merge that keeps less.
        progress: is called with a description of the current work.

    Returns:
        The report, as in `merge_report.json`.

    Raises:
        ArtifactError: the adapter does not fit the base.
        ConfigError: the kind is unknown, or cannot be made from this base.
        GraftLMError: the merge keeps too little, or the proof of effect failed.
        ResourceError: the disk is too small, or ``out`` exists.
    """
    return measured_merge(
        adapter,
        out,
        to=to,
        base=base,
        onto=onto,
        data=_named(data),
        calibration=_named(calibrate),
        least_kept=least_kept,
        force=force,
        tell=progress,
        finish=write_merge_page,
    )


def _named(rows: Rows | None) -> str | None:
    return None if rows is None else str(named_rows(rows, "eval"))
