"""A run in small, for real: a process of its own loads, trains a few steps, and says what it took.

    python -m graftlm.planning.trial_run < request.json > answer.json

Two uses. `plan --verify` rehearses a planned setting with the real model and compares. And what a
training process occupies *before* any model (interpreter, libraries, tokenizer) is the rehearsal of
a model of next to nothing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graftlm.config import RunConfig
from graftlm.errors import TrainingError

__all__ = ["Measured", "rehearse"]

STEPS = 3
"""The moments exist after the first; the second is in the steady state; one more to see that."""

TEXT = 20_000
"""Characters of the text that the rows are cut from."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a rehearsal took.

    Attributes:
        peak_bytes: highest memory of the process; on CUDA, highest allocated.
        loading_peak_bytes: the same, up to the end of loading.
        resident_bytes: memory at the end.
        seconds_per_step: the fastest step.
    """

    peak_bytes: int
    loading_peak_bytes: int
    resident_bytes: int
    seconds_per_step: float


def rehearse(config: RunConfig, length: int, padded: bool = False) -> Measured:
    """Run ``config`` for three steps on rows cut from one text in a process of its own.

    Args:
        config: what is trained and how; its data is not read.
        length: tokens of each row.
        padded: make every second row one token shorter, so that there is something to mask.

    Raises:
        TrainingError: the process failed; its last words are quoted.
    """
    request = {
        "config": config.model_dump(mode="json"),
        "rows": {"length": length, "padded": padded},
    }
    done = subprocess.run(
        [sys.executable, "-m", "graftlm.planning.trial_run"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise TrainingError(
            f"the rehearsal of {config.method} with rows of {length} tokens failed: {lines[-1]}"
        )
    return Measured(**json.loads(done.stdout.strip().splitlines()[-1]))


def _answer(request: dict[str, Any]) -> Measured:
    """In the process: load, train, measure, in the order of `graftlm.run`."""
    from graftlm.system import peak_resident, release_freed_memory, resident, return_freed_memory

    return_freed_memory()

    from pydoc_data.topics import topics  # English text that every Python has

    import torch

    from graftlm.models import StoredTokenizer, load_tokenizer
    from graftlm.training import train
    from graftlm.training.train import adapted_model

    config = RunConfig.model_validate(request["config"])
    tokenizer = load_tokenizer(config.model.name, trust_remote_code=config.model.trust_remote_code)
    text = " ".join(topics.values())[:TEXT]
    ids = tokenizer(text)["input_ids"]
    with StoredTokenizer(tokenizer) as stored, tempfile.TemporaryDirectory() as folder:
        del tokenizer
        release_freed_memory()
        model = adapted_model(config)
        # The stand-in for a model of next to nothing knows fewer tokens than its tokenizer.
        known = model.get_input_embeddings().num_embeddings
        loading_peak = peak_resident()
        if torch.cuda.is_available():
            model.to("cuda")  # type: ignore[arg-type]
        out = Path(folder) / "run"
        result = train(
            model,
            stored,
            _rows(**request["rows"], ids=[i % known for i in ids], config=config),
            config.train.model_copy(update={"steps": STEPS, "save_steps": None}),
            out=out,
            data_config=config.data.model_copy(update={"group_by_length": False}),
            progress=False,
        )
        lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines]
    seconds = min(row["tokens"] / row["tokens_per_second"] for row in steps)
    return Measured(result.peak_memory_bytes, loading_peak, resident(), seconds)


def _rows(length: int, padded: bool, ids: Sequence[int], config: RunConfig) -> list[Any]:
    """As many examples of this length as the steps take.

    Their tokens are ``ids``, of real text, from another place in each row: what the loss keeps
    depends on how well the model knows what it reads.
    """
    from graftlm.data.batch import Example

    batches = STEPS * config.train.gradient_accumulation_steps
    return [
        Example(
            input_ids=[ids[(37 * row + i) % len(ids)] for i in range(size)],
            supervised=[i > 0 for i in range(size)],
        )
        for row in range(config.train.batch_size * batches)
        for size in [max(2, length - 1) if padded and row % 2 else length]
    ]


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(_answer(json.load(sys.stdin)))))
