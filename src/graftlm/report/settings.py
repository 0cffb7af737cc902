"""The settings and the provenance of a run, as rows of a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from graftlm.config import RunConfig

__all__ = ["SettingRow", "provenance_rows", "setting_rows"]


@dataclasses.dataclass(frozen=True)
class SettingRow:
    """One setting: its full name, its value as text, and whether it is the default."""

    name: str
    value: str
    default: bool

    @property
    def pair(self) -> tuple[str, str]:
        """Name and value."""
        return self.name, self.value


def setting_rows(config: RunConfig) -> list[SettingRow]:
    """Every setting, in the order of its declaration."""
    usual = dict(_flat(RunConfig().model_dump(mode="json")))
    return [
        SettingRow(name, _shown(value), value == usual.get(name))
        for name, value in _flat(config.model_dump(mode="json"))
    ]


def provenance_rows(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Hashes and versions from a run's `provenance.json`."""
    base = provenance.get("base", {})
    rows = []
    if base.get("sha256"):
        rows.append((f"base model {base.get('name', '')}", f"sha256 {base['sha256']}"))
    rows += [(path, f"sha256 {digest}") for path, digest in provenance.get("data", {}).items()]
    rows.append(("settings", f"sha256 {provenance.get('settings_sha256', '–')}"))
    return rows + [(name, str(text)) for name, text in provenance.get("versions", {}).items()]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The tree with its sections flattened; a value that is itself a mapping is kept."""
    rows: list[tuple[str, Any]] = []
    for name, value in tree.items():
        section = not prefix and isinstance(value, dict)
        rows += _flat(value, f"{name}.") if section else [(f"{prefix}{name}", value)]
    return rows


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items()) or "none"
    return str(value)
