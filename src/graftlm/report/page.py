"""Turns a template of this package into one HTML page without scripts or external files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

__all__ = ["render"]

_TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """The page's HTML; every value is escaped, except the drawings of this package."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
