"""Hides the progress bars of transformers and the Hub, so that only graftlm writes to stderr."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

__all__ = ["without_progress_bars"]


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """Switch the bars off by the libraries' own switches; restore the switches afterwards."""
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
    """Silence the Hub's warning that an environment variable overrides its switch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
