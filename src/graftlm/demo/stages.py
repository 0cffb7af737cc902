"""The demo: trains a small model on a practical task and measures whether it learned it.

The task is to turn a customer's free-form message into one JSON record (`graftlm.demo.requests`).
The model answers the same held-out messages, with templates and names that training does not use,
before and after training. The second time, the base is loaded anew with the adapter from disk, as a
user would load it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from graftlm.adapters.adapter_tokenizer import adapter_tokenizer
from graftlm.adapters.peft_format import load_adapter
from graftlm.config import DataConfig, Method, ModelConfig, RunConfig, TrainConfig
from graftlm.data.scoring import TotalScore, score, settled, total
from graftlm.data.tokenise import render_prompt
from graftlm.demo.requests import generate_rows
from graftlm.files import atomic_write
from graftlm.models import generate_text, load_model
from graftlm.system import release_freed_memory
from graftlm.training import RunResult, run

__all__ = ["DemoResult", "DemoSettings", "run_demo", "write_rows"]


@dataclasses.dataclass(frozen=True)
class DemoSettings:
    """The settings of the demo, chosen to learn the task in minutes on two cores.

    For the same tokens, two rows per step teach more than eight, because there are more updates.
    Adam's usual second moment (0.999) would keep the first, large gradients for all of a short run.
    """

    model: str = "gemma-3-270m"
    method: Method = "qlora"
    device: str = "auto"
    eval_rows: int = 48
    scored_rows: int = 100
    steps: int = 450
    batch_size: int = 2
    learning_rate: float = 7e-4
    adam_beta2: float = 0.98
    seed: int = 0

    @property
    def train_rows(self) -> int:
        """Each row is seen once."""
        return self.steps * self.batch_size


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """What the demo measured.

    Attributes:
        rows: the held-out rows shown: prompt, expected, before, after.
        before: scores of the base model on all held-out rows.
        after: scores of the tuned model on the same rows.
        training: the run's summary.
        adapter_bytes: size of the trained weights on disk.
    """

    rows: list[dict[str, str]]
    before: TotalScore
    after: TotalScore
    training: RunResult
    adapter_bytes: int


def run_demo(
    settings: DemoSettings,
    out: Path,
    say: Callable[[str], None],
    shown: int = 10,
) -> DemoResult:
    """Generate data, measure the base, train, measure again; write everything to ``out``.

    Args:
        settings: how much to do.
        out: the folder for the data and the run.
        say: is called with a line of text at each stage.
        shown: held-out rows to return in full.
    """
    heldout = generate_rows("heldout", settings.scored_rows, settings.seed)
    # Use another seed than for the scored rows: the loss curve and the score must not share rows.
    eval_rows = generate_rows("heldout", settings.eval_rows, settings.seed + 1)
    train_rows = generate_rows("train", settings.train_rows, settings.seed)
    files = {"train": train_rows, "eval": eval_rows, "heldout": heldout}
    for name, rows in files.items():
        write_rows(out / f"{name}.jsonl", rows)
    config = RunConfig(
        method=settings.method,
        device=settings.device,
        out=str(out / "run"),
        model=ModelConfig(name=settings.model),
        data=DataConfig(train=str(out / "train.jsonl"), eval=str(out / "eval.jsonl")),
        train=TrainConfig(
            steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            adam_beta2=settings.adam_beta2,
            eval_steps=max(1, settings.steps // 4),
            seed=settings.seed,
        ),
    )
    said = f"{shown} to the end, the others until their score is settled"
    say(f"before training: answering {len(heldout)} held-out messages, {said}")
    before = _answers(config, None, heldout, shown)
    release_freed_memory()
    say(f"training: {settings.method}, {settings.steps} steps of {settings.batch_size} rows")
    training = run(config)
    if not training.finished or training.adapter is None:
        raise KeyboardInterrupt
    say(f"after training: answering the same {len(heldout)} messages, {said}")
    after = _answers(config, Path(training.adapter), heldout, shown)
    return DemoResult(
        rows=[
            {**row, "before": first, "after": second}
            for row, first, second in zip(heldout, before, after, strict=True)
        ][:shown],
        before=_score(before, heldout),
        after=_score(after, heldout),
        training=training,
        adapter_bytes=sum(f.stat().st_size for f in Path(training.adapter).glob("*.safetensors")),
    )


def _answers(
    config: RunConfig, result: Path | None, rows: Sequence[dict[str, str]], shown: int
) -> list[str]:
    """The model's greedy answers; ``result`` is an adapter, or a whole model for ``full``.

    The base does not stop by itself and seldom writes an object: all its answers would go to the
    limit. Only the first ``shown`` are written to their end; another one ends where no further text
    can change its score.
    """
    whole_model = result is not None and config.method == "full"
    model, tokenizer = load_model(
        str(result) if whole_model else config.model.name,
        quantize=config.model.weight_format if config.method == "qlora" else None,
        device=config.device,
    )
    if result is not None and not whole_model:
        load_adapter(model, result)
        tokenizer = adapter_tokenizer(result, tokenizer)
    model.train(False)
    longest = max(len(tokenizer(row["completion"]).input_ids) for row in rows) + 8
    # All at once: a row that is complete makes room for the next one.
    prompts = [render_prompt(row["prompt"], tokenizer) for row in rows]
    enough = [None if number < shown else settled for number in range(len(rows))]
    found = generate_text(model, tokenizer, prompts, max_new_tokens=longest, enough=enough)
    return [answer.text for answer in found]


def _score(answers: Sequence[str], rows: Sequence[dict[str, str]]) -> TotalScore:
    return total(
        score(answer, row["completion"]) for answer, row in zip(answers, rows, strict=True)
    )


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write ``rows`` as JSONL."""
    with atomic_write(path) as temporary:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        temporary.write_text(text, encoding="utf-8")
