"""Answers at evaluations: they are recorded, and change nothing of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from graftlm.config import load_run_config
from graftlm.config.contradictions import require_complete
from graftlm.errors import ConfigError
from graftlm.training.train import run


def settings(model: Path, rows: Path, out: Path, **train: Any) -> Any:
    more = [(["train", name], value) for name, value in train.items()]
    flags = [
        (["model", "name"], str(model)), (["data", "train"], str(rows)), (["out"], str(out)),
        (["data", "eval_fraction"], 0.2), (["train", "steps"], 4), (["train", "eval_steps"], 2),
        (["device"], "cpu"), (["lora", "dropout"], 0.1), *more,
    ]  # fmt: skip
    return load_run_config(None, flags)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_samples_are_recorded_and_change_no_step(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    run(settings(tiny_llama, rows_file, tmp_path / "without"), progress=False)
    run(settings(tiny_llama, rows_file, tmp_path / "with", samples=3), progress=False)
    plain, asked = (
        [(row["loss"], row["grad_norm"], row.get("eval_loss")) for row in rows_of(path)]
        for path in (tmp_path / "without/metrics.jsonl", tmp_path / "with/metrics.jsonl")
    )
    assert asked == plain
    assert not (tmp_path / "without/samples.jsonl").exists()
    found = rows_of(tmp_path / "with/samples.jsonl")
    assert {row["step"] for row in found} == {0, 2, 4}
    assert {row["row"] for row in found} == {0, 1, 2}
    texts = [tiny_tokenizer.decode(row["prompt"], skip_special_tokens=True) for row in found]
    assert all(text.startswith("say ") for text in texts)
    for row in found:
        word = tiny_tokenizer.decode(row["expected"], skip_special_tokens=True)
        prompt = tiny_tokenizer.decode(row["prompt"], skip_special_tokens=True)
        assert word.strip().rstrip("!") in prompt
        assert len(row["answer"]) <= 2 * 20 + 8


def test_samples_need_held_out_rows(tiny_llama: Path, rows_file: Path, tmp_path: Path) -> None:
    asked = settings(tiny_llama, rows_file, tmp_path, samples=3, eval_steps=0)
    data = asked.data.model_copy(update={"eval_fraction": 0.0})
    with pytest.raises(ConfigError, match=r"train\.samples=3 needs rows to measure on"):
        require_complete(asked.model_copy(update={"data": data}))
