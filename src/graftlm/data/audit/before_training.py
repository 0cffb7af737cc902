"""The checks of rows at the start of training: the errors that `graftlm check` would find.

This is the fast part of the audit. It uses tokenised examples without reading each row again, and
runs before the weights of the model are read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graftlm.config import DataConfig
from graftlm.data.audit.findings import Finding, template_findings, text_findings
from graftlm.data.audit.fits import ModelLimits, fit_findings
from graftlm.data.chat import ChatFormat
from graftlm.data.example import Example
from graftlm.data.store import Examples
from graftlm.errors import DataError

__all__ = ["require_fit", "said_before_training"]


def require_fit(examples: Sequence[Example], limits: ModelLimits) -> list[Finding]:
    """Refuse rows that the model cannot read.

    Returns:
        The other findings, which the caller prints.

    Raises:
        DataError: token ids beyond the embedding table, or rows longer than a model's fixed
            positions.
    """
    findings = fit_findings(examples, limits)
    errors = [f"{f.count:,} {f.message}" for f in findings if f.severity == "error"]
    if errors:
        raise DataError("\n".join(errors))
    return findings


def said_before_training(
    examples: Examples,
    held: Sequence[Example],
    form: ChatFormat,
    config: DataConfig,
) -> list[Finding]:
    """Messages about rows that can be trained on, to print before a long run."""
    findings = template_findings(examples.report, config, form)
    found = [finding for finding in findings if finding.severity == "warning"]
    found += text_findings(examples.report)
    if isinstance(held, Examples) and len(held):
        same = int(np.isin(held.hashes, examples.hashes).sum())
        if same:
            found.append(
                Finding("leakage", "warning", same, f"of the {len(held):,} rows to measure on are "
                        "trained on too: the held-out loss cannot tell overfitting")
            )  # fmt: skip
    return found
