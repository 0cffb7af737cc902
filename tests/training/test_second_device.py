"""A run on a device other than the CPU: load, adapt, ten steps, save, resume, evaluate, answer.

The device is `tests/oracles/second_device.py`: it has real values, and refuses an operator over
tensors of two devices. Each place that once took the CPU for granted is on the way of one of these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from graftlm.adapters.peft_format import load_adapter
from graftlm.config import DataConfig, LoRAConfig, ModelConfig, RunConfig, TrainConfig
from graftlm.errors import TrainingError
from graftlm.extend import Hook
from graftlm.kernels import implement, operators, withdraw
from graftlm.models import generate_text, load_model
from graftlm.training import evaluate, run
from graftlm.training.rows import read_rows
from tests.oracles.second_device import CARD, DeviceMixError, SecondDevice, There, second_device

pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA is not available.*:UserWarning")


def request(model: Path, rows: Path, out: Path, device: str, **settings: Any) -> RunConfig:
    train = {"steps": 10, "batch_size": 3, "learning_rate": 1e-2, "schedule": "constant"}
    parts = {
        "embeddings": settings.pop("embeddings", "keep"),
        "dropout": settings.pop("dropout", 0.0),
        "packing": settings.pop("packing", False),
    }
    return RunConfig(
        method=settings.pop("method", "qlora"),
        device=device,
        out=str(out),
        model=ModelConfig(name=str(model), embeddings=parts["embeddings"]),
        data=DataConfig(train=str(rows), packing=parts["packing"]),
        lora=LoRAConfig(dropout=parts["dropout"]),
        train=TrainConfig(**{**train, **settings}),
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"method": "lora", "gradient_checkpointing": True, "gradient_accumulation_steps": 2},
        {"method": "full", "steps": 3},
        {"embeddings": "int8"},
        {"packing": True, "steps": 3},
    ],
    ids=["qlora", "lora", "full", "int8", "packing"],
)
def test_a_run_there_learns_what_a_run_here_learns(
    settings: dict[str, Any], tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    here = run(request(tiny_llama, rows_file, tmp_path / "here", "cpu", **settings), progress=False)
    with second_device():
        asked = request(tiny_llama, rows_file, tmp_path / "there", "cuda", **settings)
        there = run(asked, progress=False)
    assert (here.device, there.device) == ("cpu", "cuda:0 (Card 0)")
    assert there.train_loss == pytest.approx(here.train_loss, rel=1e-4)
    if settings.get("method") != "full":
        assert here.adapter is not None
        assert there.adapter is not None
        ours, theirs = (
            load_file(Path(folder) / "adapter_model.safetensors")
            for folder in (there.adapter, here.adapter)
        )
        assert ours.keys() == theirs.keys()


@pytest.mark.parametrize("settings", [{}, {"packing": True}, {"gradient_checkpointing": True}])
def test_a_run_without_padding_there_learns_what_a_run_here_learns(
    settings: dict[str, Any], tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    asked = {"steps": 3, **settings}
    here = run(request(tiny_llama, rows_file, tmp_path / "here", "cpu", **asked), progress=False)
    names = ("sequence_attention", "sequence_attention_backward")
    added = [implement(name, "cuda", operators()[name].reference) for name in names]
    try:
        with second_device():
            there = run(
                request(tiny_llama, rows_file, tmp_path / "there", "cuda", **asked), progress=False
            )
    finally:
        for one in added:
            withdraw(one)
    assert there.train_loss == pytest.approx(here.train_loss, rel=1e-4)


class PauseAfterTwo(Hook):
    def step_ends(self, active: Any) -> None:
        if active.state.step == 2:
            active.pause()


def test_a_resumed_run_is_the_same_to_the_last_bit_and_another_device_is_said(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked(name: str, device: str = "cuda") -> RunConfig:
        return request(tiny_llama, rows_file, tmp_path / name, device, steps=4, dropout=0.2)

    with second_device():
        whole = run(asked("whole"), progress=False)
        run(asked("parts"), progress=False, hooks=[PauseAfterTwo()])
        parts = run(asked("parts"), resume=True, progress=False)
        run(asked("moved"), progress=False, hooks=[PauseAfterTwo()])
    assert whole.adapter is not None
    assert parts.adapter is not None
    first, second = (
        load_file(Path(one) / "adapter_model.safetensors") for one in (whole.adapter, parts.adapter)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    stored = load_file(next((tmp_path / "moved/checkpoints").glob("step-2")) / "rng.safetensors")
    assert stored.keys() == {"cpu", "cuda:0"}
    assert "goes on on" not in capsys.readouterr().err
    assert run(asked("moved", "cpu"), resume=True, progress=False).finished
    assert "began on cuda:0 and goes on on cpu" in capsys.readouterr().err


class CountWaits(Hook):
    def __init__(self, device: SecondDevice) -> None:
        self.device, self.counts, self.before = device, [], 0  # type: ignore[var-annotated]

    def step_begins(self, active: Any) -> None:
        self.before = self.device.waits.total()

    def step_ends(self, active: Any) -> None:
        self.counts.append(self.device.waits.total() - self.before)


def test_a_step_waits_for_the_device_once_and_twice_for_each_mask(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    passes = 2
    with second_device() as device:
        hook = CountWaits(device)
        asked = request(
            tiny_llama, rows_file, tmp_path / "run", "cuda", gradient_accumulation_steps=passes
        )
        run(asked, progress=False, hooks=[hook])
    # The first step also probes the model. transformers asks each mask twice whether it masks.
    assert max(hook.counts[1:]) <= 1 + 2 * passes


def test_evaluation_and_answers_there_are_those_here(
    tiny_llama: Path,
    rows_file: Path,
    tmp_path: Path,
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Its tensors lack the counters that the stand-in needs.
    monkeypatch.setattr("torch.inference_mode", torch.no_grad)
    made = run(request(tiny_llama, rows_file, tmp_path / "run", "cpu", steps=3), progress=False)
    rows, _ = read_rows(tiny_tokenizer, DataConfig(), str(rows_file), "")

    def measured(device: str) -> Any:
        model, tokenizer = load_model(tiny_llama, device=device)
        load_adapter(model, Path(made.adapter or ""))
        model.eval()
        answers = generate_text(model, tokenizer, [[1, 2, 3], [4]], max_new_tokens=4)
        return evaluate(model, rows).loss, [one.text for one in answers], model.device

    here = measured("cpu")
    with second_device():
        there = measured("cuda")
    assert there[0] == pytest.approx(here[0], rel=1e-5)
    assert there[1] == here[1]
    assert there[2] == CARD


class MemoryRunsOut(Hook):
    def step_begins(self, active: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_memory_that_runs_out_is_answered_with_what_needs_less(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    asked = request(tiny_llama, rows_file, tmp_path / "run", "cuda", method="lora")
    with second_device(), pytest.raises(TrainingError) as caught:
        run(asked, progress=False, hooks=[MemoryRunsOut()])
    said = str(caught.value)
    assert "the memory of cuda:0 (Card 0) ran out (CUDA out of memory" in said
    for change in ("micro_batch_tokens=512", "gradient_checkpointing=true", "--method qlora"):
        assert change in said
    assert f"graftlm plan {tiny_llama} --device cuda:0" in said


def test_the_second_device_refuses_a_mix_and_moves_by_request() -> None:
    with second_device() as device:
        there = torch.ones(3, device="cuda")
        assert isinstance(there, There)
        assert there.device == CARD
        assert (there + 1).sum().item() == 6  # a number may come along
        assert (there.cpu() + torch.ones(3)).tolist() == [2, 2, 2]
        with pytest.raises(DeviceMixError, match="add"):
            there + torch.ones(3)
        with pytest.raises(DeviceMixError):
            torch.stack([there, torch.ones(3)])
        assert device.waits.total() == 2
