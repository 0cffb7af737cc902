"""The documents say what the code says."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def test_settings_page_is_generated_from_the_declarations() -> None:
    page = runpy.run_path(str(DOCS / "generate_settings.py"))["page"]
    assert (DOCS / "settings.md").read_text(encoding="utf-8") == page()
