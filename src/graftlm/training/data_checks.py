"""Checks before a run starts: whether the rows suit the model, and the prompt form they teach."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graftlm.config import DataConfig
from graftlm.data.audit.before_training import require_fit, said_before_training
from graftlm.data.audit.findings import Finding
from graftlm.data.audit.fits import limits_of, untrained_findings
from graftlm.data.chat import ChatFormat
from graftlm.data.example import Example
from graftlm.data.prompt_format import PromptFormat, format_of, with_format
from graftlm.data.store import Examples
from graftlm.errors import ModelError, printable
from graftlm.models.embedding_rows import embedding_rows

__all__ = [
    "check_rows",
    "marker_findings",
    "model_config_in",
    "record_of_rows",
    "trained_tokenizer",
]

_SAMPLE = 2000
"""How many ordinary rows of the embedding table are compared with the rows of the markers."""


def check_rows(
    examples: Sequence[Example],
    held: Sequence[Example],
    tokenizer: Any,
    config: DataConfig,
    model_config: Mapping[str, Any],
    folder: Path | None = None,
) -> None:
    """Refuse rows that the model cannot read; print warnings on stderr.

    Args:
        examples: the training rows.
        held: the held-out rows; may be empty.
        tokenizer: the model's, with the chat template in force.
        config: the settings the rows were read with.
        model_config: the content of the model's ``config.json``.
        folder: the model's folder, to look at the rows of its embedding table.

    Raises:
        DataError: token ids beyond the embedding table, or rows longer than the model's fixed
            positions.
    """
    limits = limits_of(model_config)
    findings = require_fit(examples, limits)
    if len(held):
        findings += require_fit(held, limits)
    if isinstance(examples, Examples):  # other tokens were made without a template
        form = ChatFormat(tokenizer, config)
        findings += said_before_training(examples, held, form, config)
        if folder is not None and examples.report.kinds["chat"]:
            findings += marker_findings(folder, form)
    for finding in findings:
        print(printable(f"data: {finding.count:,} {finding.message}"), file=sys.stderr)


def marker_findings(folder: Path, form: ChatFormat) -> list[Finding]:
    """Findings on markers of the chat template that the model was not trained on."""
    ids = form.markers_used
    try:
        size = limits_of(model_config_in(folder)).vocab_size or max(ids.values(), default=0) + 1
        ordinary = np.unique(np.linspace(0, size - 1, _SAMPLE).astype(int)).tolist()
        rows = embedding_rows(folder, [*ids.values(), *ordinary])
    except ModelError:
        return []  # loading the model says what is wrong with its files
    if rows is None or not ids:
        return []
    markers = dict(zip(ids, rows[: len(ids)], strict=True))
    return untrained_findings(markers, rows[len(ids) :])


def model_config_in(folder: Path) -> dict[str, Any]:
    """The content of a model's ``config.json``; empty where it cannot be read."""
    try:
        value = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # loading the model says what is wrong with it
    return value if isinstance(value, dict) else {}


def trained_tokenizer(tokenizer: Any, examples: Sequence[Example], config: DataConfig) -> Any:
    """The tokenizer that is saved with the result; its template prompts in the form of training."""
    form = _form(examples, config)
    return tokenizer if form is None else with_format(tokenizer, form)


def record_of_rows(examples: Sequence[Example], config: DataConfig) -> dict[str, Any] | None:
    """The record of the rows in the run folder: their kinds, and the prompt form."""
    form = _form(examples, config)
    if form is None or not isinstance(examples, Examples):
        return None
    return {
        "read": examples.report.sources,
        "formats": dict(examples.report.formats),
        "unused_columns": dict(examples.report.unused),
        "asked": {"kind": form.kind, "separator": form.separator},
    }


def _form(examples: Sequence[Example], config: DataConfig) -> PromptFormat | None:
    if not isinstance(examples, Examples):
        return None  # tokens that were not made by this package
    return format_of(examples.report.kinds, config)
