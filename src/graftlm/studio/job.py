"""The process around one command: starts it, waits, and writes down its exit code.

    python -m graftlm.studio.job FOLDER

It outlives the server, so a command that ends while no server runs still leaves its exit code. It
is started in a session of its own: Ctrl-C in the server's terminal does not reach it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil

from graftlm.files import write_json

__all__ = ["main"]


def main(folder: Path) -> int:
    """Run the command of ``folder`` and return its exit code."""
    record = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        child = subprocess.Popen(
            [sys.executable, "-m", "graftlm", *record["words"]],
            cwd=record["work"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
        known = {
            who: {"pid": process.pid, "created": process.create_time()}
            for who, process in (
                ("command", psutil.Process(child.pid)),
                ("around", psutil.Process()),  # lives until the exit code stands
            )
        }
        write_json(folder / "process.json", known)
        code = child.wait()
    write_json(folder / "exit.json", {"code": code})
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
