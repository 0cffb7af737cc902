"""Starts a command in several processes, and tells how they ended."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from graftlm.config import shown
from graftlm.errors import ConfigError
from graftlm.system.devices import accelerators
from graftlm.system.processes import started_processes

__all__ = ["train_in"]

A_CORE = 4
"""Processes a core that are still tried."""


def train_in(count: int, words: Sequence[str]) -> int:
    """Run `graftlm` with these words in ``count`` processes; return the exit code.

    Raises:
        ConfigError: these processes were started by a launcher already, or this machine cannot use
            so many.
    """
    most = max(A_CORE * (os.cpu_count() or 1), len(accelerators()))
    if count > most:
        raise ConfigError(
            f"--processes {shown(str(count), 40)}: this machine can use {most} at the most. A GPU "
            "takes one, and a processor hardly more than one a core."
        )
    started = started_processes().world_size
    if started > 1:
        raise ConfigError(
            f"--processes {count}: torchrun has started {started} processes already. Leave it out."
        )
    from graftlm.distributed.launch import launch

    debug = ["--debug"] if "--debug" in sys.argv else []
    return launch(count, [*words, *debug])
