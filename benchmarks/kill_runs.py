"""Kills a short `train`, `merge`, `export` and `quantize` at every file-system event and moment.

    python benchmarks/kill_runs.py --random 300

After each SIGKILL the next command runs: `--resume` (or the same command again, where a run has
nothing to resume). Then three things must hold:

    nothing lost         it goes on from the last checkpoint that the killed process completed
    nothing left behind  the run's folder, the folder around it, the cache and the folder for
                         temporary files hold what they hold after an undisturbed run
    the same end         every file is equal to the undisturbed one, bit for bit, but for times

An event is an opening for writing, a rename, a removal, a new folder, a change of rights or a
flush; the process dies just before it. A random moment is drawn evenly over the command's length.
Each process is a fork of one that has done all commands before, so a kill takes a fraction of
a second. The model is a random Llama of two layers over bytes. Prints a row of CSV for each command
and ends with exit code 1 if anything failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from killed_commands import Command, commands, write_inputs
from killed_process import die_before, ended, forked

# Before torch is imported: a fork keeps no other thread.
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

TIMED = {"summary.json", "state.json", "merge_report.json", "merge_report.html", "index.html"}
"""Files that hold times or speeds: they must be there, and may differ."""


@dataclasses.dataclass
class Found:
    """What the kills of one command showed; faults by the moment of the kill."""

    events: int = 0
    kills: int = 0
    after_the_end: int = 0
    seconds: list[float] = dataclasses.field(default_factory=list)
    faults: dict[str, list[str]] = dataclasses.field(default_factory=dict)


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder below ``folder``, hidden ones too, with what must be equal."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[name] = "folder"
        elif path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            kept = [[row.get(key) for key in ("step", "loss", "eval_loss")] for row in rows]
            found[name] = json.dumps(kept)
        elif path.name == "README.md":
            lines = path.read_text().splitlines()
            found[name] = "\n".join(line for line in lines if not line.startswith("- seconds:"))
        elif path.name in TIMED or path.suffix == ".html":
            found[name] = "timed"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


class Killer:
    """Kills one command again and again, and looks at what the next one finds and leaves."""

    def __init__(self, name: str, command: Command, work: Path) -> None:
        self.name, self.command, self.work = name, command, work
        self.found, self.log = Found(), work / "log.txt"
        self._clear()
        started = time.perf_counter()
        code, told = ended(*forked(self._counting, self.log))
        self.length = time.perf_counter() - started
        if code:
            raise SystemExit(f"{name} fails undisturbed:\n{self.log.read_text()}")
        self.found.events = told[-1]["events"]
        self.expected = self._all()

    def at_event(self, event: int) -> None:
        """Kill it just before this event."""

        def work(tell: Callable[[Any], None]) -> None:
            die_before(event)
            self.command.first(tell)

        self._kill(f"event {event}", work, None)

    def after(self, seconds: float) -> None:
        """Kill it at this moment."""
        self._kill(f"{seconds:.3f} s", self.command.first, seconds)

    def _counting(self, tell: Callable[[Any], None]) -> None:
        seen = die_before(sys.maxsize)
        self.command.first(lambda _: None)
        tell({"events": seen()})

    def _kill(
        self, when: str, work: Callable[[Callable[[Any], None]], object], seconds: float | None
    ) -> None:
        started = time.perf_counter()
        self._clear()
        process, inlet = forked(work, self.log)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(process, signal.SIGKILL)  # not reaped yet, so the number is still its own
        code, saved = ended(process, inlet)
        if code != -signal.SIGKILL:
            self.found.after_the_end += 1
        if code not in (0, -signal.SIGKILL):
            self._fault(when, f"the command itself failed: {self._said()}")
        code, told = ended(*forked(lambda tell: tell(self.command.again()), self.log))
        if code:
            self._fault(when, f"the next command failed: {self._said()}")
        elif told[-1] is not None and saved and told[-1] < max(saved):
            self._fault(when, f"step {max(saved)} was saved, and it went on from {told[-1]}")
        now = self._all()
        for name in sorted(self.expected.keys() | now.keys()):
            if self.expected.get(name) != now.get(name):
                what = "lost" if name not in now else "left" if name not in self.expected else "not"
                self._fault(when, f"{what}: {name}" + (" the same" if what == "not" else ""))
        self.found.kills += 1
        self.found.seconds.append(time.perf_counter() - started)

    def _said(self) -> str:
        return self.log.read_text().strip().splitlines()[-1]

    def _fault(self, when: str, what: str) -> None:
        self.found.faults.setdefault(f"{self.name}, killed at {when}", []).append(what)

    def _clear(self) -> None:
        for folder in (self.command.out.parent, self.work / "cache", self.work / "temporary"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()

    def _all(self) -> dict[str, str]:
        places = (self.command.out.parent, self.work / "cache", self.work / "temporary")
        return {f"{place.name}/{k}": v for place in places for k, v in contents(place).items()}


def kill_runs(work: Path, moments: int, every: int = 1, seed: int = 0) -> dict[str, Found]:
    """Kill each command at every ``every``-th event, and all of them at ``moments`` moments."""
    os.environ |= {"GRAFTLM_CACHE": str(work / "cache")}
    tempfile.tempdir = str(work / "temporary")
    for name in ("cache", "temporary", "train", "merge", "export", "quantize"):
        (work / name).mkdir()
    import torch

    torch.set_num_threads(1)
    write_inputs(work)
    made = commands(work)
    for command in made.values():  # everything is imported before the first fork
        command.first(lambda _: None)
    draw = random.Random(seed)
    killers = {name: Killer(name, command, work) for name, command in made.items()}
    for killer in killers.values():
        for event in range(0, killer.found.events, every):
            killer.at_event(event)
    for number in range(moments):
        killer = list(killers.values())[number % len(killers)]
        killer.after(draw.uniform(0, killer.length))
    return {name: killer.found for name, killer in killers.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a row for each command; 1 if anything was lost, left or different."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--random", type=int, default=300, help="kills at random moments")
    parser.add_argument("--every", type=int, default=1, help="kill at every N-th event")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        found = kill_runs(Path(name).resolve(), options.random, options.every, options.seed)
    print("command,events,kills,ended before the kill,median seconds a kill,kills with faults")
    for name, one in found.items():
        middle = statistics.median(one.seconds)
        print(f"{name},{one.events},{one.kills},{one.after_the_end},{middle:.2f},{len(one.faults)}")
    for one in found.values():
        for when, faults in one.faults.items():
            more = f"\n    and {len(faults) - 2} more" if len(faults) > 2 else ""
            print(f"{when}\n    " + "\n    ".join(faults[:2]) + more)
    return 1 if any(one.faults for one in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
