"""`graftlm.train` with a model that the caller has loaded."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import graftlm
from graftlm.adapters import activate, lora_modules
from graftlm.config import recorded_config
from graftlm.extend import Hook
from graftlm.training.hooks.metrics_file import read_metrics


class PauseAfterTwo(Hook):
    def step_ends(self, active: Any) -> None:
        if active.state.step == 2:
            active.pause()


def adapted(folder: Path, *names: str) -> tuple[Any, Any]:
    """The model with these adapters, of which the last one is active."""
    model, tokenizer = graftlm.load_model(str(folder))
    for name in names:
        torch.manual_seed(0)
        config = graftlm.LoRAConfig(rank=4, targets=("q_proj", "up_proj", "lm_head"))
        graftlm.add_lora(model, config, name=name)
    activate(model, names[-1])
    return model, tokenizer


@pytest.mark.parametrize("names", [("task",), ("default", "task")], ids=["one", "second"])
def test_the_active_adapter_resumes_and_keeps_its_best_weights(
    names: tuple[str, ...], tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    config = graftlm.TrainConfig(
        steps=3, batch_size=2, learning_rate=0.3, schedule="constant", warmup_ratio=0.0,
        eval_steps=1,
    )  # fmt: skip
    # What is learned makes these less likely with every step, so the first weights are the best.
    held = tmp_path / "held.jsonl"
    held.write_text('{"prompt": "say", "completion": "ZQXWZQXWZQXW"}\n' * 4)

    def fit(out: Path, **options: Any) -> tuple[Any, Any]:
        model, tokenizer = adapted(tiny_llama, *names)
        result = graftlm.train(
            model, tokenizer, rows_file, config,
            out=out, eval_data=held, progress=False, **options,
        )  # fmt: skip
        return model, result

    _, whole = fit(tmp_path / "whole")
    measured = [row["eval_loss"] for row in read_metrics(tmp_path / "whole" / "metrics.jsonl")]
    assert min(measured) < measured[-1]
    assert whole.eval_loss_after == pytest.approx(min(measured), rel=1e-6)
    assert not fit(tmp_path / "parts", hooks=[PauseAfterTwo()])[1].finished
    model, parts = fit(tmp_path / "parts", resume=True)
    assert parts.eval_loss_after == whole.eval_loss_after
    results = [
        (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes()
        for name in ("whole", "parts")
    ]
    assert results[0] == results[1]
    before, _ = adapted(tiny_llama, *names)
    for other in names[:-1]:
        for place, module in lora_modules(before, other).items():
            after = lora_modules(model, other)[place].peft_state()
            assert all(torch.equal(t, after[key]) for key, t in module.peft_state().items())


def test_a_model_is_freed_after_its_run(tiny_llama: Path, rows_file: Path, tmp_path: Path) -> None:
    model, tokenizer = adapted(tiny_llama, "default")
    alive = weakref.ref(model)
    config = graftlm.TrainConfig(steps=1, batch_size=2)
    graftlm.train(model, tokenizer, rows_file, config, out=tmp_path / "run", progress=False)
    del model
    gc.collect()
    assert alive() is None


def test_all_weights_of_a_bfloat16_model_train_in_its_own_type(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for resume in (False, True):
        model, tokenizer = graftlm.load_model(str(tiny_llama), quantize=None, dtype="bfloat16")
        model.requires_grad_(True)
        config = graftlm.TrainConfig(steps=2, batch_size=2)
        result = graftlm.train(
            model, tokenizer, rows_file, config, out=out, progress=False, resume=resume
        )
        assert (result.method, result.finished) == ("full", True)
    assert recorded_config(out / "config.yaml").model.dtype == "bfloat16"
    stored = load_file(out / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
