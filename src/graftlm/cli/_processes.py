"""Starts a command in several processes, and tells how they ended."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from graftlm.errors import ConfigError
from graftlm.system.processes import started_processes

__all__ = ["train_in"]


def train_in(count: int, words: Sequence[str]) -> int:
    """Run `graftlm` with these words in ``count`` processes; return the exit code.

    Raises:
        ConfigError: these processes were started by a launcher already.
    """
    started = started_processes().world_size
    if started > 1:
        raise ConfigError(
            f"--processes {count}: torchrun has started {started} processes already. Leave it out."
        )
    from graftlm.distributed.launch import launch

    debug = ["--debug"] if "--debug" in sys.argv else []
    return launch(count, [*words, *debug])
