"""`load_examples`: from a source to what training iterates over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from graftlm.config import DataConfig
from graftlm.data.batch import Example
from graftlm.data.formats import RowError, parse_row
from graftlm.data.sources import read_rows
from graftlm.data.tokenise import Encoder
from graftlm.data.truncate import truncate
from graftlm.errors import DataError

__all__ = ["Examples", "LoadReport", "load_examples"]

_SHOWN = 5


@dataclass
class LoadReport:
    """What happened on the way from rows to examples."""

    rows: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    too_long: int = 0
    """Rows longer than ``max_length``, dropped."""
    truncated: int = 0
    """Rows that lost a part."""
    split: int = 0
    """Rows that became several windows."""
    unsupervised: int = 0
    """Rows or windows dropped because nothing in them is learned."""


class Examples(Sequence[Example]):
    """Examples in memory, with the report of how they came about."""

    def __init__(self, examples: Sequence[Example], report: LoadReport) -> None:
        self._examples = examples
        self.report = report

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        return self._examples[index]


def load_examples(path: str | Path, tokenizer: Any, config: DataConfig) -> Examples:
    """Read, recognise, render, tokenise and truncate.

    Raises:
        DataError: the source cannot be read, rows are malformed (the first few are listed with
            file and line), or nothing is left to learn from.
    """
    encoder = Encoder(tokenizer, config)
    report = LoadReport()
    problems: list[str] = []
    wrong = 0
    examples: list[Example] = []
    for raw in read_rows(path):
        report.rows += 1
        try:
            if raw.error:
                raise RowError(raw.error)
            row = parse_row(raw.value, config.columns)
            rendered = encoder.format.render(row)
        except RowError as error:
            wrong += 1
            if len(problems) < _SHOWN:
                problems.append(f"{raw.where}: {error}")
            continue
        report.formats[row.format] += 1
        [example] = encoder([rendered])
        examples.extend(truncate(example, config, report))
    raise_problems(problems, wrong, report.rows)
    require_some(examples, report, path, config)
    return Examples(examples, report)


def raise_problems(problems: Sequence[str], wrong: int, rows: int) -> None:
    """One error that lists the first malformed rows."""
    if problems:
        more = f"\n... and {wrong - len(problems)} more" if wrong > len(problems) else ""
        raise DataError("\n".join(problems) + more + f"\n{wrong} of {rows} rows are malformed.")


def require_some(
    examples: Sequence[Example] | Iterable[Example],
    report: LoadReport,
    path: object,
    config: DataConfig,
) -> None:
    """Refuse data that would train nothing."""
    if report.rows == 0:
        raise DataError(f"{path} is empty; expected at least one row")
    if not any(True for _ in examples):
        raise DataError(
            f"nothing is left to learn from {path}: of {report.rows} rows {report.too_long} are "
            f"longer than max_length={config.max_length} and {report.unsupervised} have no "
            "learned token within it. Raise data.max_length, or set data.truncation to left, right "
            "or split."
        )
