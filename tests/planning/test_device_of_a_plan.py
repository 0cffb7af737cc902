"""A plan is for the device of the run, and what it verifies runs there."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from graftlm.config import ModelConfig, RunConfig, TrainConfig
from graftlm.planning import choose, make_plan, trial_run
from tests.oracles.fake_gpu import GIGABYTE, FakeGPU, put_in
from tests.oracles.second_device import second_device

pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA is not available.*:UserWarning")


def request(folder: Path, device: str) -> RunConfig:
    return RunConfig(
        method="auto",
        device=device,
        model=ModelConfig(name=str(folder)),
        train=TrainConfig(steps=2, batch_size=2, gradient_checkpointing=False),
    )


@pytest.mark.parametrize(
    ("asked", "free", "device"),
    [
        ("auto", 20 * GIGABYTE, "cuda:0"),
        ("auto", 1_000_000, "cpu"),
        ("cpu", 20 * GIGABYTE, "cpu"),
        ("cuda", 20 * GIGABYTE, "cuda"),
    ],
)
def test_what_is_chosen_is_for_the_device_that_the_run_is_on(
    asked: str, free: int, device: str, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in(monkeypatch, FakeGPU(free=(free,)))
    planned: list[str] = []
    made = make_plan

    def recorded(*arguments: Any, **settings: Any) -> Any:
        planned.append(settings["device"])
        return made(*arguments, **settings)

    module = importlib.import_module("graftlm.planning.decide")
    monkeypatch.setattr(module, "make_plan", recorded)
    chosen, _ = choose(request(tiny_llama, asked), limit=8 * GIGABYTE)
    assert chosen.device == device
    assert planned[-1] == device.partition(":")[0]


def test_a_plan_for_a_card_times_nothing_on_the_processor(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graftlm.planning.planner.calibrate", lambda: pytest.fail("it did"))
    config = RunConfig(model=ModelConfig(name=str(tiny_llama)))
    for card, known in ((None, False), ("A100", True)):
        plan = make_plan(config, device="cuda", card=card, memory="8GB", methods=["lora"])
        assert all((option.seconds_per_step is not None) is known for option in plan.options)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_trial_run_is_on_the_device_of_the_plan(
    device: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here in this process, beside a card that it may not take unasked."""
    config = request(tiny_llama, device).model_copy(
        update={"method": "lora", "out": str(tmp_path / "run")}
    )
    asked = {"config": config.model_dump(mode="json"), "length": 16, "padded": False, "steps": 2}
    (tmp_path / trial_run.REQUEST).write_text(json.dumps(asked))
    with second_device():
        measured = trial_run._measure(tmp_path)
    assert measured.seconds_per_step > 0
    used = json.loads((tmp_path / "run/summary.json").read_text())["device"]
    assert used == ("cpu" if device == "cpu" else "cuda:0 (Card 0)")
