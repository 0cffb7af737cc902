"""The report on the way from rows to examples, counted during the work."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from graftlm.data.notes import NOTES
from graftlm.errors import printable

__all__ = ["LoadReport"]

_SHOWN = 5
_COLUMNS = 200
"""Maximum unused columns that are counted separately by name."""


@dataclass
class LoadReport:
    """Counts, and for each kind of finding the first places where it occurred."""

    rows: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    """``chat``, ``completion`` (plain text) or ``text`` → rows."""
    lengths: Counter[int] = field(default_factory=Counter)
    """Tokens in a whole row, before truncation → rows."""
    malformed: int = 0
    too_long: int = 0
    """Rows longer than ``max_length``, dropped."""
    truncated: int = 0
    """Rows that lost a part."""
    split: int = 0
    """Rows that became several windows."""
    unsupervised: int = 0
    """Rows or windows dropped because they have no learned token."""
    unused: Counter[str] = field(default_factory=Counter)
    """Column that is not learned from → rows in which it has content."""
    notes: Counter[str] = field(default_factory=Counter)
    """Kind of finding → rows."""
    places: dict[str, list[str]] = field(default_factory=dict)
    """Kind of finding → the first places, with details."""
    sources: list[str] = field(default_factory=list)
    """Messages on which files were read and which were not, if there was a choice."""

    def note(self, kind: str, place: str) -> None:
        """Count a finding; the first few places are kept."""
        self.notes[kind] += 1
        kept = self.places.setdefault(kind, [])
        if len(kept) < _SHOWN:
            kept.append(printable(place))

    def note_unused(self, columns: tuple[str, ...]) -> None:
        """Count columns that are not learned from; beyond a limit of names, all others as one."""
        for name in columns:
            known = name in self.unused or len(self.unused) < _COLUMNS
            self.unused[printable(name[:60]) if known else "others"] += 1

    def add(self, other: LoadReport) -> None:
        """Add the counts of a later part."""
        for item in dataclasses.fields(self):
            mine, theirs = getattr(self, item.name), getattr(other, item.name)
            if isinstance(mine, Counter):
                mine.update(theirs)
            elif isinstance(mine, list):
                mine += [value for value in theirs if value not in mine]
            elif isinstance(mine, dict):
                for kind, places in theirs.items():
                    kept = mine.setdefault(kind, [])
                    kept += places[: _SHOWN - len(kept)]
            else:
                setattr(self, item.name, mine + theirs)

    def losses(self, max_length: int) -> str:
        """The losses in words; empty if there are none."""
        counts = (
            (self.too_long, f"dropped, longer than max_length={max_length}"),
            (self.truncated, f"cut to {max_length} tokens"),
            (self.split, f"split into windows of {max_length} tokens"),
            (self.unsupervised, "left out, as nothing in them is learned"),
        )
        said = [f"{count:,} {what}" for count, what in counts if count]
        return f"of {self.rows:,} rows {'; '.join(said)}" if said else ""

    def said(self, name: str, max_length: int) -> list[str]:
        """Lines for training to print, one for each thing that is not used, read or learned.

        Args:
            name: the name of the rows.
            max_length: the longest row in tokens.
        """
        lines = [printable(line) for line in self.sources]
        if lost := self.losses(max_length):
            lines.append(f"{name}: {lost}")
        if self.unused:
            lines.append(f"{name}: columns that are not used: {self.columns_in_words()}")
        for kind, note in NOTES.items():
            if note.is_loss and self.notes[kind]:
                places = self.places[kind]
                lines.append(f"{name}: {self.notes[kind]:,} {note.message}; first {places[0]}")
        return lines

    def columns_in_words(self) -> str:
        """The unused columns, those in most rows first."""
        names = [name or "(no name)" for name, _ in self.unused.most_common(9)]
        return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {n: dict(v) if isinstance(v, dict) else v for n, v in values.items()}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> LoadReport:
        """The reverse of `to_dict`."""
        names = ("formats", "kinds", "unused", "notes")
        counters: dict[str, Any] = {name: Counter(value[name]) for name in names}
        counters["lengths"] = Counter({int(n): rows for n, rows in value["lengths"].items()})
        return cls(**(value | counters))
