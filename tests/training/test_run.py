"""Whole runs on a tiny model: what they leave behind, and that stopping changes nothing."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import graftlm
from graftlm.config import ResolvedConfig, RunConfig, recorded_config, validate
from graftlm.errors import ArtifactError, ConfigError, ResourceError, TrainingError
from graftlm.training import loop, run
from graftlm.training.hooks.metrics_file import read_metrics
from graftlm.training.next_token import NextToken

STEPS = 12


def settings(model: Path, data: Path, out: Path, **train: Any) -> RunConfig:
    method = train.pop("method", "lora")
    lora = {"rank": 4, "dropout": train.pop("dropout", 0.1)}
    packing = train.pop("packing", False)
    tree = {
        "method": method,
        "out": str(out),
        "model": {"name": str(model)},
        "data": {"train": str(data), "eval": str(data), "max_length": 64, "packing": packing},
        "lora": lora,
        "train": {"steps": STEPS, "batch_size": 2, "gradient_accumulation_steps": 3} | train,
    }
    return validate(RunConfig, tree)


def result_bytes(out: Path) -> dict[str, bytes]:
    """The tensors of the final result and the final checkpoint."""
    files = sorted(out.glob("adapter/*.safetensors")) + sorted(out.glob("model/*.safetensors"))
    files += sorted((out / "checkpoints" / f"step-{STEPS}").glob("*.safetensors"))
    assert files
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def interrupt_at(monkeypatch: pytest.MonkeyPatch, micro_batch: int) -> None:
    """Send this process Ctrl-C while the given micro-batch (counted over the run) is computed."""
    real = NextToken.loss
    seen = 0

    def counting(self: NextToken, model: Any, batch: Any) -> Any:
        nonlocal seen
        if model.training:
            seen += 1
            if seen == micro_batch:
                os.kill(os.getpid(), signal.SIGINT)
        return real(self, model, batch)

    monkeypatch.setattr(NextToken, "loss", counting)


@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
def test_loss_falls_and_the_run_folder_is_complete(
    method: str, tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    config = settings(
        tiny_llama, rows_file, tmp_path / "run", method=method, learning_rate=3e-3, eval_steps=6
    )
    result = run(config, progress=False)

    assert result.finished
    assert result.eval_loss_before is not None
    assert result.eval_loss_after is not None
    assert result.eval_loss_after < result.eval_loss_before
    out = tmp_path / "run"
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert result.tokens == sum(row["tokens"] for row in rows)
    assert json.loads((out / "summary.json").read_text()) == loop.dataclasses.asdict(result)
    provenance = json.loads((out / "provenance.json").read_text())
    assert len(provenance["base"]["sha256"]) == 64
    assert len(provenance["data"][str(rows_file)]) == 64
    recorded = recorded_config(out / "config.yaml")
    assert isinstance(recorded, ResolvedConfig)
    said, kept = config.model_dump(exclude_unset=True), recorded.model_dump()
    for section in ("data", "lora", "train"):
        assert said[section].items() <= kept[section].items()
    text = (out / "config.yaml").read_text(encoding="utf-8")
    assert "null" not in text
    assert "auto" not in text


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
@pytest.mark.parametrize("micro_batch", [14, 15, 16], ids=["middle", "last", "first"])
def test_stopped_and_resumed_run_equals_uninterrupted_one_to_the_last_bit(
    method: str,
    micro_batch: int,
    tiny_llama: Path,
    rows_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = settings(tiny_llama, rows_file, tmp_path / "whole", method=method, eval_steps=4)
    run(whole, progress=False)
    parts = settings(tiny_llama, rows_file, tmp_path / "parts", method=method, eval_steps=4)
    with monkeypatch.context() as patch:
        interrupt_at(patch, micro_batch)
        stopped = run(parts, progress=False)
    assert not stopped.finished
    assert 0 < stopped.steps < STEPS
    torch.manual_seed(12345)  # resuming must not depend on what was drawn in between
    assert run(parts, resume=True, progress=False).finished
    assert result_bytes(tmp_path / "whole") == result_bytes(tmp_path / "parts")
    losses = [
        [row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_killed_and_resumed_run_equals_uninterrupted_one_packed_and_checkpointed(
    method: str,
    tiny_llama: Path,
    rows_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is saved on the way out: what goes on is the checkpoint of some steps before."""

    class Killed(BaseException):
        pass

    def in_folder(name: str) -> RunConfig:
        return settings(
            tiny_llama,
            rows_file,
            tmp_path / name,
            method=method,
            packing=True,
            gradient_checkpointing=True,
            save_steps=4,
        )

    run(in_folder("whole"), progress=False)
    real: Callable[..., Any] = NextToken.loss
    calls = 0

    def dying(self: NextToken, model: Any, batch: Any) -> Any:
        nonlocal calls
        calls += model.training
        if calls > 20:
            raise Killed
        return real(self, model, batch)

    with monkeypatch.context() as patch:
        patch.setattr(NextToken, "loss", dying)
        with pytest.raises(Killed):
            run(in_folder("parts"), progress=False)
    assert not (tmp_path / "parts" / "summary.json").exists()
    assert run(in_folder("parts"), resume=True, progress=False).finished
    assert result_bytes(tmp_path / "whole") == result_bytes(tmp_path / "parts")


def test_one_batch_of_eight_equals_eight_of_one(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    losses = []
    for batch_size, accumulation, tokens in ((8, 1, 4096), (1, 8, None), (2, 4, None), (8, 1, 20)):
        out = tmp_path / f"{batch_size}x{accumulation}x{tokens}"
        config = settings(
            tiny_llama,
            rows_file,
            out,
            dropout=0.0,
            steps=5,
            batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            micro_batch_tokens=tokens,
        )
        config = config.model_copy(
            update={"data": config.data.model_copy(update={"group_by_length": False})}
        )
        run(config, progress=False)
        losses.append([row["loss"] for row in read_metrics(out / "metrics.jsonl")])
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-5)


def test_best_evaluation_is_what_the_run_leaves(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    """With a learning rate that diverges, the best weights are early ones."""
    config = settings(
        tiny_llama,
        rows_file,
        tmp_path / "run",
        learning_rate=20.0,
        schedule="constant",
        warmup_ratio=0.0,
        eval_steps=1,
    )
    result = run(config, progress=False)
    measured = [row["eval_loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert result.eval_loss_after == pytest.approx(min(measured), rel=1e-6)
    assert min(measured) < measured[-1]


def test_patience_stops_the_run(tiny_llama: Path, rows_file: Path, tmp_path: Path) -> None:
    config = settings(
        tiny_llama,
        rows_file,
        tmp_path / "run",
        learning_rate=20.0,
        warmup_ratio=0.0,
        eval_steps=1,
        early_stopping_patience=2,
    )
    result = run(config, progress=False)
    assert result.finished
    assert result.steps < STEPS


def test_non_finite_loss_stops_with_a_diagnosis_and_keeps_the_checkpoint(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = NextToken.loss, 0

    def breaking(self: NextToken, model: Any, batch: Any) -> Any:
        nonlocal calls
        calls += model.training
        loss, count = real(self, model, batch)
        return loss * (float("nan") if calls > 9 else 1.0), count

    monkeypatch.setattr(NextToken, "loss", breaking)
    config = settings(tiny_llama, rows_file, tmp_path / "run", save_steps=2)
    with pytest.raises(TrainingError, match="loss is nan"):
        run(config, progress=False)
    assert (tmp_path / "run" / "checkpoints" / "step-2" / "state.json").exists()


def test_a_run_is_never_overwritten(tiny_llama: Path, rows_file: Path, tmp_path: Path) -> None:
    config = settings(tiny_llama, rows_file, tmp_path / "run", steps=1)
    run(config, progress=False)
    with pytest.raises(ResourceError, match="already holds a run"):
        run(config, progress=False)


def test_resume_refuses_what_would_change_the_result(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match="no run to resume"):
        run(settings(tiny_llama, rows_file, tmp_path / "none"), resume=True, progress=False)
    run(settings(tiny_llama, rows_file, tmp_path / "run", steps=1), progress=False)
    other = settings(tiny_llama, rows_file, tmp_path / "run", steps=1, learning_rate=1.0)
    with pytest.raises(ConfigError, match=r"train\.learning_rate"):
        run(other, resume=True, progress=False)


def test_tensorboard_files_hold_the_metrics(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(
        settings(tiny_llama, rows_file, tmp_path / "run", steps=3, tracking="tensorboard"),
        progress=False,
    )
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    logged = [scalar.value for scalar in events.Scalars("loss")]
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert logged == pytest.approx([row["loss"] for row in rows])


def test_python_interface_trains_a_model_in_hand(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    model, tokenizer = graftlm.load_model(str(tiny_llama), quantize="nf4")
    graftlm.add_lora(model, graftlm.LoRAConfig(rank=4, alpha=8))
    result = graftlm.train(
        model,
        tokenizer,
        rows_file,
        graftlm.TrainConfig(steps=3, batch_size=4),
        out=tmp_path / "run",
        progress=False,
    )
    assert result.method == "qlora"
    assert Path(result.adapter or "").is_dir()
