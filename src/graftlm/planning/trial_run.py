"""A short real run: a separate process loads, trains a few steps, and reports memory and time.

    python -m graftlm.planning.trial_run FOLDER

It has two uses. `plan --verify` runs a planned setting with the real model and compares. A trial
run of a tiny model measures the memory of a process *without* a model (interpreter, libraries,
tokenizer).
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from graftlm.config import RunConfig, TrainConfig
from graftlm.errors import TrainingError
from graftlm.files import temporary_folder, write_json
from graftlm.system.child import end_with_parent

__all__ = ["LIMIT_SECONDS", "STEPS", "Measured", "run_trial"]

STEPS = 3
"""Steps. The moments exist after the first; the second and third are in the steady state."""
LIMIT_SECONDS = 600
"""A trial run that takes longer is stopped."""
ONLY_STEPS = {
    "objective": "next_token",
    "eval_steps": 0,
    "early_stopping_patience": 0,
    "save_steps": 0,
    "tracking": "none",
}
"""Settings of training that a trial run sets: it measures steps and nothing between them."""
ONLY_ROWS = {"eval": "", "eval_fraction": 0.0, "group_by_length": False}
"""Settings of the data that a trial run sets: its rows come from a text, and all are trained on."""
REQUEST, ANSWER = "request.json", "answer.json"


@dataclasses.dataclass(frozen=True)
class Measured:
    """The memory and time of a trial run.

    Attributes:
        peak_bytes: peak memory of the process.
        loading_peak_bytes: peak memory up to the end of loading.
        resident_bytes: memory at the end.
        seconds_per_step: the fastest step.
    """

    peak_bytes: int
    loading_peak_bytes: int
    resident_bytes: int
    seconds_per_step: float


def run_trial(
    config: RunConfig,
    length: int,
    padded: bool = False,
    *,
    steps: int = STEPS,
    progress: Callable[[str], None] = lambda text: None,
) -> Measured:
    """Run ``config`` for a few steps, in a separate process, on rows cut from one text.

    Args:
        config: the settings of the run; its data is ignored.
        length: tokens of each row.
        padded: make every second row one token shorter, so that a mask is needed.
        steps: the number of steps; at least two.
        progress: is called with the current state, twice a second.

    Raises:
        TrainingError: the process failed, and the message quotes its last output; or it took
            longer than `LIMIT_SECONDS`.
    """
    with temporary_folder("trial") as folder:
        settings = config.model_copy(update={"out": str(folder / "run")}).model_dump(mode="json")
        request = {"config": settings, "length": length, "padded": padded, "steps": steps}
        write_json(folder / REQUEST, request)
        with (folder / "output.txt").open("w", encoding="utf-8") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "graftlm.planning.trial_run", str(folder)],
                stdin=subprocess.PIPE,  # open while this process lives
                stdout=output,
                stderr=output,
                env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
            )
            try:
                _wait(process, folder / "run" / "metrics.jsonl", steps, progress)
            finally:
                process.kill()
                process.wait()
                assert process.stdin is not None
                process.stdin.close()
        if process.returncode:
            said = (folder / "output.txt").read_text(encoding="utf-8", errors="replace")
            *_, last = f"exit code {process.returncode}", *said.strip().splitlines()
            raise TrainingError(
                f"the trial run of {config.method} with rows of {length} tokens failed: {last}"
            )
        return Measured(**json.loads((folder / ANSWER).read_text(encoding="utf-8")))


def _wait(
    process: subprocess.Popen[bytes], metrics: Path, steps: int, progress: Callable[[str], None]
) -> None:
    """Wait for the process to end; its metrics file shows its progress."""
    started = time.monotonic()
    while True:
        try:
            process.wait(timeout=0.5)
            return
        except subprocess.TimeoutExpired:
            elapsed = time.monotonic() - started
        if elapsed > LIMIT_SECONDS:
            raise TrainingError(
                f"the trial run was stopped after {LIMIT_SECONDS} s. Make it smaller, with "
                "--max-length, --batch-size or a smaller model."
            )
        done = metrics.read_text(encoding="utf-8").count("\n") if metrics.exists() else None
        where = "loading" if done is None else f"step {min(done + 1, steps)} of {steps}"
        progress(f"{where}, {elapsed:.0f} s")


def _measure(folder: Path) -> Measured:
    """The trial process: load, train, measure, in the order of `graftlm.run`."""
    from graftlm.system import release_freed_memory, return_freed_memory
    from graftlm.system.placement import placement_of

    return_freed_memory()

    from graftlm.data.chat import template_name
    from graftlm.data.new_tokens import add_tokens
    from graftlm.data.shipped_text import TEXT
    from graftlm.models import StoredTokenizer, load_tokenizer
    from graftlm.training import train
    from graftlm.training.adapted_model import adapted_model
    from graftlm.training.new_tokens import with_rows_of
    from graftlm.training.rank_probe import widest

    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    config = RunConfig.model_validate(request["config"])
    tokenizer = load_tokenizer(config.model.name, trust_remote_code=config.model.trust_remote_code)
    config = with_rows_of(config, add_tokens(tokenizer, config.data.new_tokens))
    # The memory of the loss depends on how well the model predicts the text: it is a natural one.
    ids = tokenizer(TEXT.read_text(encoding="utf-8"))["input_ids"]
    template = template_name(tokenizer)
    with StoredTokenizer(tokenizer) as stored:
        del tokenizer
        release_freed_memory()
        # The ranks of EVA follow from rows; their sum is that of the request.
        init = "default" if config.lora.init == "eva" else config.lora.init
        lora = widest(config.lora) if config.lora.probe_ranks else config.lora
        config = config.model_copy(update={"lora": lora.model_copy(update={"init": init})})
        model = adapted_model(config)
        # The tiny model of the baseline has a smaller vocabulary than its tokenizer.
        known = model.get_input_embeddings().num_embeddings
        placement = placement_of(model)
        loading_peak = placement.peak_memory()
        result = train(
            model,
            stored,
            _rows(request, [i % known for i in ids], config.train),
            config.train.model_copy(update={**ONLY_STEPS, "steps": request["steps"]}),
            out=config.out,
            data_config=config.data.model_copy(
                update={**ONLY_ROWS, "new_tokens": (), "chat_template": template}
            ),
            progress=False,
        )
    lines = (Path(config.out) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = min(row["tokens"] / row["tokens_per_second"] for row in map(json.loads, lines))
    return Measured(result.peak_memory_bytes, loading_peak, placement.memory_now(), seconds)


def _rows(request: dict[str, Any], ids: Sequence[int], train: TrainConfig) -> list[Any]:
    """One example of this length for each row of the steps, each from another part of the text."""
    from graftlm.data.batch import Example

    rows = []
    for row in range(train.batch_size * train.gradient_accumulation_steps * request["steps"]):
        size = max(2, request["length"] - 1) if request["padded"] and row % 2 else request["length"]
        tokens = [ids[(997 * row + i) % len(ids)] for i in range(size)]
        rows.append(Example(tokens, [i > 0 for i in range(size)]))
    return rows


if __name__ == "__main__":
    end_with_parent()
    write_json(Path(sys.argv[1]) / ANSWER, dataclasses.asdict(_measure(Path(sys.argv[1]))))
