"""Processes that train one model, forked from one that has imported everything."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path


def start(world: int, work: Callable[[], object], log: Path) -> list[int]:
    """Start ``work`` in ``world`` forks as torchrun would; returns their process numbers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(world):
        process = os.fork()
        if process:
            processes.append(process)
            continue
        code = 1
        try:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world),
                "LOCAL_WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            with log.with_suffix(f".{rank}").open("wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return processes


def end(processes: list[int], seconds: float = 300) -> list[int]:
    """Wait for the forks; their exit codes (negative: the signal). Late ones are killed."""
    codes: dict[int, int] = {}
    limit = time.monotonic() + seconds
    while len(codes) < len(processes):
        for process in processes:
            if process not in codes:
                done, status = os.waitpid(process, os.WNOHANG)
                if done:
                    codes[process] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > limit:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, 9)
        time.sleep(0.005)
    return [codes[process] for process in processes]


def run(world: int, work: Callable[[], object], log: Path) -> None:
    """Do ``work`` in ``world`` processes; an error of one is raised with what all have said."""
    codes = end(start(world, work, log), seconds=1800)
    if any(codes):
        said = [log.with_suffix(f".{rank}").read_text()[-1500:] for rank in range(world)]
        raise SystemExit(f"exit codes {codes}\n" + "\n".join(said))
