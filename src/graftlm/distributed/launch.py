"""`graftlm train --processes N`: PyTorch's launcher, as `torchrun --nproc-per-node N` calls it.

The launcher starts the processes on this machine, watches them, and ends the others when one ends
with an error. Messages come from the processes themselves (`failure.py`). Only what kills a process
is told here.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence

__all__ = ["launch"]


def launch(processes: int, words: Sequence[str]) -> int:
    """Run `python -m graftlm` with these words in ``processes`` processes, and wait for the end.

    Unless the user has set OMP_NUM_THREADS, each process gets its share of the processor's cores.

    Returns:
        The exit code of the process that failed first; 0 if none did.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What it writes about a process that fails is for its developers.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    share = max(1, (os.cpu_count() or 1) // processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(share))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "graftlm", *words)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode
        name = signal.Signals(-failure.exitcode).name
        print(
            f"error: rank {rank} (process {failure.pid}) was ended by {name}. "
            "Go on from the last checkpoint with --resume.",
            file=sys.stderr,
        )
        return 1
    except SignalException:
        return 1  # the processes have had the signal too and have said what they did
    return 0
