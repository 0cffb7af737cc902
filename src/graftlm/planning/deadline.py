"""Ends a plan that takes too long."""

from __future__ import annotations

import time
from collections.abc import Callable

from graftlm.errors import ResourceError

__all__ = ["PLAN_SECONDS", "ends_after"]

PLAN_SECONDS = 600.0
"""By default. The trace of a large model takes a minute or two."""


def ends_after(seconds: float, progress: Callable[[str], None]) -> Callable[[str], None]:
    """``progress``, which raises once ``seconds`` from now are over.

    A trace calls it whenever a layer begins, so that code which catches the error is asked again.

    Raises:
        ResourceError: from the returned function.
    """
    end = time.monotonic() + seconds

    def note(text: str) -> None:
        if time.monotonic() > end:
            raise ResourceError(
                f"the plan was not done within {seconds:g} s; it was at: {text}. Plan for fewer "
                "methods (qlora alone), for shorter rows (data.max_length) or with a longer time "
                "limit, or train a few steps: their peak memory is in summary.json."
            )
        progress(text)

    return note
