"""An objective from outside: other rows, two forward passes a row, measured before the run."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import graftlm
from graftlm.errors import ConfigError, TrainingError
from graftlm.extend import Example, Hook
from graftlm.training.hooks.metrics_file import read_metrics
from tests.extension import preference
from tests.extension.preference import Preference, Preferences

STEPS = 6


def rows() -> list[Preference]:
    """Prefer words of the upper half of the vocabulary."""
    draw = torch.Generator().manual_seed(0)

    def example(low: int, length: int) -> Example:
        ids = [1, 2, 3, *torch.randint(low, low + 100, (length,), generator=draw).tolist()]
        return Example(ids, [False] * 3 + [True] * length)

    return [Preference(example(150, 4 + i % 5), example(30, 4 + i % 3)) for i in range(8)]


def opened(folder: Path) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model, tokenizer = graftlm.load_model(str(folder), quantize="nf4")
    graftlm.add_lora(model, graftlm.LoRAConfig(rank=4, alpha=8))
    return model, tokenizer


def fit(folder: Path, out: Path, **options: Any) -> tuple[Any, Any]:
    model, tokenizer = opened(folder)
    config = graftlm.TrainConfig(
        objective="preference", steps=STEPS, batch_size=4, learning_rate=5e-3, eval_steps=3
    )
    result = graftlm.train(
        model, tokenizer, rows(), config, out=out, eval_data=rows(), progress=False, **options
    )
    return model, result


def log_probability(model: Any, example: Example) -> torch.Tensor:
    """The oracle: all logits in memory."""
    ids = torch.tensor([list(example.input_ids)])
    learned = torch.tensor(list(example.supervised))[1:]
    logs = model(input_ids=ids).logits.float().log_softmax(-1)[0, :-1]
    return logs.gather(1, ids[0, 1:, None])[learned].sum()


class PauseAt(Hook):
    def __init__(self, step: int) -> None:
        self.step = step

    def step_ends(self, active: Any) -> None:
        if active.state.step == self.step:
            active.pause()


def test_a_preference_objective_trains_stops_and_resumes(tiny_llama: Path, tmp_path: Path) -> None:
    before, _ = opened(tiny_llama)
    model, result = fit(tiny_llama, tmp_path / "whole")
    assert result.finished
    assert result.eval_loss_before == pytest.approx(math.log(2), rel=1e-6)  # margin 0 at first
    assert result.eval_loss_after is not None
    assert result.eval_loss_after < math.log(2)
    metrics = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert metrics[0]["loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert [row["supervised_tokens"] for row in metrics] == [4] * STEPS

    # The loss that was measured at the end, from all logits of both models.
    model.eval()
    before.eval()
    with torch.no_grad():
        gains = torch.stack([
            sum(
                sign * (log_probability(model, side) - log_probability(before, side))
                for sign, side in ((1, row.chosen), (-1, row.rejected))
            )
            for row in rows()
        ])  # fmt: skip
    expected = -torch.nn.functional.logsigmoid(Preferences.beta * gains).mean()
    assert result.eval_loss_after == pytest.approx(float(expected), rel=1e-4)

    # Paused and resumed: what was measured before the run is read, not measured again.
    _, paused = fit(tiny_llama, tmp_path / "parts", hooks=[PauseAt(3)])
    assert not paused.finished
    _, resumed = fit(tiny_llama, tmp_path / "parts", resume=True)
    assert resumed.finished
    assert resumed.eval_loss_after == result.eval_loss_after
    whole, parts = (
        safetensors.torch.load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
        for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_count_that_differs_from_the_announced_one_is_refused(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Preferences, "count", lambda self, batch: 2)
    with pytest.raises(TrainingError, match=r"announced a count of 2 .* summed over 1"):
        fit(tiny_llama, tmp_path / "run")


def test_an_unknown_objective_is_refused_with_those_that_exist(
    tiny_llama: Path, tmp_path: Path
) -> None:
    model, tokenizer = opened(tiny_llama)
    config = graftlm.TrainConfig(objective="preferense", steps=1)
    with pytest.raises(ConfigError, match=r"'preferense' is not.*next_token, preference"):
        graftlm.train(model, tokenizer, rows(), config, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["preference", "stop_below"])
def test_the_file_is_short_and_imports_only_public_names(name: str) -> None:
    text = Path(preference.__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    modules = [
        node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)
    ]
    assert {m for m in modules if m and m.startswith("graftlm")} == {"graftlm.extend"}
