"""A short `train`, `merge`, `export` and `quantize` of a tiny model, and what follows a kill."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from random_llama import write_tiny_llama

STEPS = 4


@dataclasses.dataclass
class Command:
    """One command.

    Attributes:
        first: does it.
        again: does what a user does after a kill; returns the first step it makes, if it makes any.
        out: the folder it writes.
    """

    first: Callable[[Callable[[int], None]], object]
    again: Callable[[], int | None]
    out: Path


def write_inputs(work: Path) -> None:
    """A model folder and a file of rows."""
    write_tiny_llama(work / "base")
    draw = random.Random(0)
    words = ["".join(draw.choice("abcdefgh") for _ in range(draw.randint(2, 12))) for _ in range(8)]
    rows = [{"prompt": f"say {word}", "completion": f"{word}!"} for word in words]
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def train_command(work: Path, out: Path) -> Command:
    """A run of a few steps, each evaluated and saved."""
    from graftlm.config import RunConfig, validate
    from graftlm.errors import GraftLMError
    from graftlm.training import run
    from graftlm.training.hooks import Hook

    rows = str(work / "rows.jsonl")
    tree = {
        "out": str(out),
        "method": "lora",
        "device": "cpu",
        "model": {"name": str(work / "base")},
        "data": {"train": rows, "eval": rows, "max_length": 64},
        "lora": {"rank": 2, "targets": ["q_proj"]},
        "train": {
            "steps": STEPS,
            "batch_size": 2,
            "learning_rate": 3e-3,
            "eval_steps": 1,
            "save_steps": 1,
            "keep_checkpoints": 1,
        },
    }
    config = validate(RunConfig, tree)

    class Saved(Hook):
        def __init__(self, tell: Callable[[int], None]) -> None:
            self.tell = tell

        def checkpoint_written(self, active: Any, folder: Path) -> None:
            self.tell(active.state.step)

    class Began(Hook):
        step: int | None = None

        def run_begins(self, active: Any) -> None:
            self.step = active.state.step

    def first(tell: Callable[[int], None]) -> None:
        run(config, progress=False, hooks=[Saved(tell)])

    def again() -> int | None:
        hook = Began()
        try:
            run(config, resume=True, progress=False, hooks=[hook])
        except GraftLMError as error:
            if "no run to resume" not in str(error):
                raise
            run(config, progress=False, hooks=[hook])
        return hook.step

    return Command(first, again, out)


def folder_command(make: Callable[[Path], object], out: Path) -> Command:
    """A command that writes one folder, and is refused where that stands complete."""
    from graftlm.errors import ResourceError

    def again() -> None:
        try:
            make(out)
        except ResourceError as error:
            if "already exists" not in str(error):
                raise

    return Command(lambda _: make(out), again, out)


def commands(work: Path) -> dict[str, Command]:
    """All of them, each with a folder of its own around what it writes."""
    from graftlm.exporting import export
    from graftlm.exporting.measured_merge import measured_merge
    from graftlm.models import quantize_folder
    from graftlm.report.merge_page import write_merge_page

    adapter = work / "trained"
    train_command(work, adapter).first(lambda _: None)

    def merge(out: Path) -> object:
        return measured_merge(adapter, out, least_kept=0, force=True, finish=write_merge_page)

    def ollama(out: Path) -> object:
        return export(adapter, "ollama", out, base=str(work / "base"), quantization="q8_0")

    def quantize(out: Path) -> object:
        return quantize_folder(str(work / "base"), out)

    return {
        "train": train_command(work, work / "train" / "run"),
        "merge": folder_command(merge, work / "merge" / "merged"),
        "export": folder_command(ollama, work / "export" / "ollama"),
        "quantize": folder_command(quantize, work / "quantize" / "quantized"),
    }
