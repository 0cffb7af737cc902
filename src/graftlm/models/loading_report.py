"""Turns transformers' loading report into an error that names the wrong weights."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from graftlm.errors import ModelError

__all__ = ["captured_messages", "require_complete"]


def require_complete(where: object, report: dict[str, Any], remedy: str) -> None:
    """Refuse a model if a weight was not filled, or if a stored tensor was not used.

    Args:
        where: the folder or file.
        report: from `from_pretrained(…, output_loading_info=True)`.
        remedy: a sentence on the likely cause.

    Raises:
        ModelError: the message names the weights.
    """
    problems = []
    for key, meaning in (
        ("missing_keys", "the model needs weights that the checkpoint lacks"),
        ("unexpected_keys", "the checkpoint holds weights that the model has no place for"),
        ("mismatched_keys", "the checkpoint holds weights of another shape"),
    ):
        names = sorted(str(entry) for entry in report[key])
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"{meaning}: {', '.join(names[:3])}{more}")
    if problems:
        raise ModelError(f"{where}: {'; '.join(problems)}. {remedy}")


@contextlib.contextmanager
def captured_messages() -> Iterator[list[str]]:
    """Collect transformers' table of missing weights in the list, instead of the log."""
    messages: list[str] = []

    def capture(record: logging.LogRecord) -> bool:
        messages.append(record.getMessage())
        return False

    noisy = logging.getLogger("transformers.modeling_utils")
    noisy.addFilter(capture)
    try:
        yield messages
    finally:
        noisy.removeFilter(capture)
