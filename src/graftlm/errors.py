"""The exceptions that a user can see, and their exit codes.

Every message answers three questions: what was wrong, what was expected, what to do about it.
The command line prints the message without a traceback and exits with ``exit_code``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = [
    "ArtifactError",
    "ConfigError",
    "DataError",
    "EndedByAnotherRank",
    "GraftLMError",
    "ModelError",
    "RequestError",
    "ResourceError",
    "TargetError",
    "TrainingError",
    "error_in",
    "near_matches",
    "printable",
    "record_of",
]

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
"""Characters that move a terminal's cursor, hide text, or are not valid in UTF-8."""


class GraftLMError(Exception):
    """Base of every error graftlm raises on purpose. Exit code 1: the work failed."""

    exit_code = 1


class RequestError(GraftLMError):
    """The request itself was wrong, and nothing was done. Exit code 2."""

    exit_code = 2


class ConfigError(RequestError):
    """One or more settings are wrong; all of them are listed at once."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(RequestError):
    """The data cannot be read, is malformed, or would train nothing."""


class ModelError(RequestError):
    """The model cannot be found, read or built."""


class TargetError(RequestError):
    """A LoRA target matches no module, or does not fit the module it matches."""


class ArtifactError(RequestError):
    """An adapter, checkpoint or exported file is missing, corrupt or of another model."""


class ResourceError(RequestError):
    """Memory, disk space or a permission is missing; checked before work starts."""


class TrainingError(GraftLMError):
    """Training had to stop, for example because the loss was not finite."""


class EndedByAnotherRank(GraftLMError):  # noqa: N818 - not an error of this process
    """Another process of the run failed and has told the user why. This one says nothing.

    Args:
        message: what happened here, for a traceback.
        exit_code: that of the other process.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def record_of(error: GraftLMError) -> dict[str, Any]:
    """``error`` as one JSON object, for another process; `error_in` reads it."""
    said = error.problems if isinstance(error, ConfigError) else str(error)
    kinds = (kind.__name__ for kind in type(error).__mro__ if kind.__module__ == __name__)
    return {"error": said, "kind": next(kinds)}


def error_in(record: Mapping[str, Any]) -> GraftLMError:
    """The error of a `record_of`: of the same class of this module, with the same message."""
    error: GraftLMError = globals()[record["kind"]](record["error"])
    return error


def printable(text: str) -> str:
    r"""``text`` with control characters, other than newlines and tabs, written as escapes.

    Use it for text from a file before it is printed: a terminal would obey an escape sequence, and
    half of a surrogate pair would raise `UnicodeEncodeError`.
    """
    return _CONTROL.sub(lambda match: ascii(match.group())[1:-1], text)


def near_matches(word: str, candidates: Iterable[str], limit: int = 3) -> str:
    """``"; did you mean 'a' or 'b'?"`` for the closest candidates, or ``""`` when none is close."""
    close = difflib.get_close_matches(word, list(candidates), n=limit, cutoff=0.5)
    if not close:
        return ""
    return "; did you mean " + " or ".join(repr(name) for name in close) + "?"
