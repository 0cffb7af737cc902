"""Runs with `lora.merge_aware`: stopped or not, evaluated, planned and merged to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from graftlm.adapters.peft_format import load_adapter
from graftlm.cli._shared import open_model
from graftlm.config import RunConfig, validate
from graftlm.errors import ConfigError
from graftlm.exporting.measured_merge import measured_merge
from graftlm.models import load_model
from graftlm.models.load import load_config
from graftlm.planning.trace import BatchShape, trace_step
from graftlm.training import run
from graftlm.training.hooks import Hook

IDS = torch.arange(1, 25).view(2, 12)


def settings(model: Path, data: Path, out: Path, **lora: Any) -> RunConfig:
    tree = {
        "method": "qlora",
        "out": str(out),
        "model": {"name": str(model)},
        "data": {"train": str(data), "eval": str(data), "max_length": 64},
        "lora": {"rank": 4, "merge_aware": "nf4"} | lora,
        "train": {"steps": 6, "batch_size": 4, "learning_rate": 1e-2, "eval_steps": 3},
    }
    return validate(RunConfig, tree)


class PauseAt(Hook):
    def __init__(self, step: int) -> None:
        self.step = step

    def step_ends(self, active: Any) -> None:
        if active.state.step == self.step:
            active.pause()


def test_stopped_resumed_saved_merged_and_opened_it_is_one_model(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    whole = run(settings(tiny_llama, rows_file, tmp_path / "whole"), progress=False)
    parts = settings(tiny_llama, rows_file, tmp_path / "parts")
    assert not run(parts, progress=False, hooks=[PauseAt(2)]).finished
    resumed = run(parts, resume=True, progress=False)
    files = [tmp_path / one / "adapter" / "adapter_model.safetensors" for one in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert whole.eval_loss_after == resumed.eval_loss_after
    assert whole.eval_loss_after is not None
    assert whole.eval_loss_before is not None
    assert whole.eval_loss_after < whole.eval_loss_before - 0.1

    report = measured_merge(tmp_path / "whole", tmp_path / "merged", to="nf4")
    assert report["chosen"] == "nf4-original"
    assert report["live_loss"] == pytest.approx(whole.eval_loss_after, rel=1e-4)
    live, _ = open_model(str(tiny_llama), str(tmp_path / "whole"), None, "cpu")
    written, _ = load_model(tmp_path / "merged", quantize=None)
    beside, _ = load_model(tiny_llama, quantize="nf4")
    load_adapter(beside, tmp_path / "whole")
    with torch.no_grad():
        assert torch.equal(live(IDS).logits, written(IDS).logits)
        assert not torch.equal(live(IDS).logits, beside(IDS).logits)


def test_a_plan_has_the_step(tiny_llama: Path, rows_file: Path, tmp_path: Path) -> None:
    architecture, shape = load_config(tiny_llama), BatchShape(2, 64)
    plain, through = (
        trace_step(
            architecture,
            settings(tiny_llama, rows_file, tmp_path, merge_aware=kind),
            shape,
            torch.float32,
        )
        for kind in ("", "nf4")
    )
    assert through.trainable_parameters == plain.trainable_parameters
    assert through.weight_bytes == plain.weight_bytes
    assert 0 < through.resident == plain.resident


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "lora"}, "use qlora"),
        ({"model": {"weight_format": "int8"}}, "use the same format"),
        ({"lora": {"merge_aware": "nf4", "dropout": 0.1}}, "use 0"),
        ({"lora": {"merge_aware": "nf4", "variant": "dora"}}, "use lora"),
    ],
)
def test_settings_that_rule_it_out_are_refused(
    change: dict[str, Any], said: str, tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    config = settings(tiny_llama, rows_file, tmp_path).model_dump()
    for key, value in change.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    with pytest.raises(ConfigError, match=said):
        run(validate(RunConfig, config), progress=False)


def test_targets_outside_the_format_are_refused(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    config = settings(tiny_llama, rows_file, tmp_path, targets=["q_proj", "lm_head"])
    with pytest.raises(ConfigError, match="lm_head cannot train through a merge"):
        run(config, progress=False)
