"""Every kernel test runs once at each instruction-set level this machine has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from graftlm.kernels import native

_EXTENSION = native.extension()
LEVELS = _EXTENSION.available_levels() if _EXTENSION else ["reference"]


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Use the kernels of one level; ``reference`` where there is no extension."""
    if _EXTENSION is None:
        yield request.param
        return
    before = _EXTENSION.level()
    _EXTENSION.use_level(request.param)
    yield request.param
    _EXTENSION.use_level(before)
