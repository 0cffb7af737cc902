"""One cache for all plans of a session, also those of `tests/cli`: what is measured is kept."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def plan_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "plan-cache"


@pytest.fixture(autouse=True)
def _cache(plan_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTLM_CACHE", str(plan_cache))
