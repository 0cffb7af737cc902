"""transformers' and the Hub's progress bars, off while graftlm calls them: stderr is graftlm's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

__all__ = ["without_progress_bars"]


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """Switch the bars off by the libraries' own switches; afterwards each is as it was."""
    from huggingface_hub import utils as hub
    from transformers.utils import logging

    bars, hub_bars = logging.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()
    logging.disable_progress_bar()  # the Hub's too
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()
        if hub_bars:
            hub.enable_progress_bars()
        else:
            hub.disable_progress_bars()
