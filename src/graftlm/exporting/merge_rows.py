"""The rows that the candidates of a merge are compared on, and those they are calibrated on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graftlm.adapters.adapter_folder import run_settings
from graftlm.adapters.adapter_tokenizer import adapter_tokenizer
from graftlm.config import DataConfig
from graftlm.data.example import Example
from graftlm.data.examples import load_examples
from graftlm.data.shipped_text import shipped_examples
from graftlm.models.load import load_config, tokenizer_in

__all__ = ["MergeRows", "merge_rows"]

MOST_ROWS = 128
LEAST_TOKENS, MOST_TOKENS = 512, 8192
MULTIPLICATIONS = 1.5e12
"""About so many in one pass over the rows, so that a merge takes minutes on a CPU."""
CALIBRATION_TOKENS = 16384


@dataclasses.dataclass(frozen=True)
class MergeRows:
    """Rows for a merge.

    Attributes:
        measured: the rows that the candidates are compared on.
        measured_from: where they are from, for the report.
        calibration: the rows that error feedback fits to; never the measured ones.
        calibration_from: where they are from.
        pad_id: any token id.
    """

    measured: Sequence[Example]
    measured_from: str
    calibration: Sequence[Example]
    calibration_from: str
    pad_id: int | None


def merge_rows(
    adapter: Path,
    folder: Path,
    data: str | None = None,
    calibrate: str | None = None,
    calibrating: bool = True,
    parameters: int = 0,
) -> MergeRows:
    """Choose the rows.

    Compared on: ``data``, else the run's held-out rows, else its training rows, else the shipped
    text. Calibrated on: ``calibrate``, else the run's training rows if these are not the compared
    ones, else every second row of what there is.

    Args:
        adapter: a PEFT adapter folder, or a run folder.
        folder: of the base.
        data: the user's rows.
        calibrate: the user's rows for calibration.
        calibrating: whether rows for it are needed at all.
        parameters: of the model; a larger one is compared on fewer tokens.

    Raises:
        DataError: named rows cannot be read.
    """
    if data is None and calibrate is None and not _has_tokenizer(folder):
        return _random_rows(folder, parameters)
    tokenizer = adapter_tokenizer(adapter, tokenizer_in(folder))
    run = run_settings(adapter)
    config = run.data if run is not None else DataConfig()
    recorded = [] if run is None else [run.data.eval, run.data.train]
    there = [name for name in recorded if isinstance(name, str) and name and Path(name).exists()]
    measured_name = data or next(iter(there), None)
    calibration_name = calibrate or next(
        (name for name in there[-1:] if name != measured_name), None
    )
    measured = _rows(measured_name, tokenizer, config)
    calibration: Sequence[Example]
    if not calibrating:
        calibration = []
    elif calibration_name is None:
        calibration, measured = measured[::2], measured[1::2] or measured
        calibration_name = measured_name
    else:
        calibration = _rows(calibration_name, tokenizer, config)
    return MergeRows(
        measured=_at_most(measured[:MOST_ROWS], _tokens(parameters)),
        measured_from=measured_name or "the text that comes with graftlm",
        calibration=_at_most(calibration, CALIBRATION_TOKENS),
        calibration_from=calibration_name or "the text that comes with graftlm",
        pad_id=tokenizer.pad_token_id,
    )


def _has_tokenizer(folder: Path) -> bool:
    return any(folder.glob("tokenizer*")) or any(folder.glob("*.model"))


def _random_rows(folder: Path, parameters: int) -> MergeRows:
    """Rows of random tokens, which need no tokenizer; an adapter changes the logits of all."""
    vocabulary = int(load_config(folder).get_text_config().vocab_size)
    draw = np.random.default_rng(0)
    rows = [
        Example(draw.integers(vocabulary, size=32, dtype=np.int32), np.ones(32, dtype=np.bool_))
        for _ in range(CALIBRATION_TOKENS // 32)
    ]
    name = "random tokens, because the base has no tokenizer"
    return MergeRows(_at_most(rows[1::2], _tokens(parameters)), name, rows[::2], name, 0)


def _rows(name: str | None, tokenizer: Any, config: DataConfig) -> list[Example]:
    if name is None:
        return shipped_examples(tokenizer)
    return list(load_examples(name, tokenizer, config, purpose="eval"))


def _tokens(parameters: int) -> int:
    """How many tokens a model is compared on."""
    return max(LEAST_TOKENS, min(MOST_TOKENS, int(MULTIPLICATIONS / max(1, parameters))))


def _at_most(rows: Sequence[Example], tokens: int) -> list[Example]:
    """The first rows, as many as have ``tokens`` tokens; at least one."""
    chosen: list[Example] = []
    for row in rows:
        tokens -= len(row)
        if tokens < 0 and chosen:
            break
        chosen.append(row)
    return chosen
