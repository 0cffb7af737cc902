"""Every kernel test runs once at each instruction-set level this machine has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

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


@pytest.fixture
def on_threads() -> Iterator[Callable[..., list[Any]]]:
    """``on_threads(work)``: what ``work()`` gives on one thread, and on two."""

    def results(work: Callable[[], Any], counts: Sequence[int] = (1, 2)) -> list[Any]:
        found = []
        for count in counts:
            torch.set_num_threads(count)
            found.append(work())
        return found

    before = torch.get_num_threads()
    yield results
    torch.set_num_threads(before)
