"""transformers' and the Hub's progress bars, off while graftlm calls them: stderr is graftlm's."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

__all__ = ["without_progress_bars"]


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """Switch the bars off by the libraries' own switches; afterwards each is as it was."""
    from huggingface_hub import utils as hub_utils
    from transformers.utils import logging as transformers_logging

    hub: Any = hub_utils
    logging: Any = transformers_logging
    bars, hub_bars = logging.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()
    with _unwarned():
        logging.disable_progress_bar()  # the Hub's too
    try:
        yield
    finally:
        with _unwarned():
            if bars:
                logging.enable_progress_bar()
            if hub_bars:
                hub.enable_progress_bars()
            else:
                hub.disable_progress_bars()


@contextlib.contextmanager
def _unwarned() -> Iterator[None]:
    """The Hub warns where a variable of the environment has the last word; it may have it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
