"""What happened on the way from rows to examples, counted as it happens."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

__all__ = ["LoadReport"]

_SHOWN = 5


@dataclass
class LoadReport:
    """Counts, and for each kind of finding the first places where it was met."""

    rows: int = 0
    formats: Counter[str] = field(default_factory=Counter)
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
    """Rows or windows dropped because nothing in them is learned."""
    notes: Counter[str] = field(default_factory=Counter)
    """Kind of finding → rows."""
    places: dict[str, list[str]] = field(default_factory=dict)
    """Kind of finding → the first places, with what was found."""

    def note(self, kind: str, place: str) -> None:
        """Count a finding; the first few places are kept."""
        self.notes[kind] += 1
        kept = self.places.setdefault(kind, [])
        if len(kept) < _SHOWN:
            kept.append(place)

    def add(self, other: LoadReport) -> None:
        """Add the counts of a later part."""
        for item in dataclasses.fields(self):
            if item.name == "places":
                for kind, places in other.places.items():
                    kept = self.places.setdefault(kind, [])
                    kept += places[: _SHOWN - len(kept)]
            elif isinstance(getattr(self, item.name), Counter):
                getattr(self, item.name).update(getattr(other, item.name))
            else:
                total = getattr(self, item.name) + getattr(other, item.name)
                setattr(self, item.name, total)

    def losses(self, max_length: int) -> str:
        """What was lost on the way, in words; empty when nothing was."""
        counts = (
            (self.too_long, f"dropped, longer than max_length={max_length}"),
            (self.truncated, f"cut to {max_length} tokens"),
            (self.split, f"split into windows of {max_length} tokens"),
            (self.unsupervised, "left out, as nothing in them is learned"),
        )
        said = [f"{count:,} {what}" for count, what in counts if count]
        return f"of {self.rows:,} rows {'; '.join(said)}" if said else ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {n: dict(v) if isinstance(v, dict) else v for n, v in values.items()}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> LoadReport:
        """The reverse of `to_dict`."""
        counters: dict[str, Any] = {n: Counter(value[n]) for n in ("formats", "notes")}
        counters["lengths"] = Counter({int(n): rows for n, rows in value["lengths"].items()})
        return cls(**(value | counters))
