"""Every command knows the device: it is a choice, and it is said which one is used."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from graftlm.cli import app as cli
from tests.oracles.fake_gpu import FakeGPU, put_in

COMMANDS: dict[str, Any] = get_command(cli.app).commands  # type: ignore[attr-defined]
RUNS_A_MODEL = {"train", "plan", "compare", "eval", "generate", "chat", "serve", "demo", "doctor"}


@pytest.mark.parametrize("command", sorted(RUNS_A_MODEL))
def test_every_command_that_runs_a_model_takes_a_device(command: str) -> None:
    options = {option for one in COMMANDS[command].params for option in one.opts}
    assert "--device" in options


def test_doctor_says_which_device_is_used_and_which_is_only_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put_in(monkeypatch, FakeGPU())
    monkeypatch.setattr("graftlm.kernels.selfcheck", lambda device: [])
    for asked, used in (("cpu", "cpu"), ("cuda", "cuda:0 (Card 0)")):
        done = CliRunner().invoke(cli.app, ["doctor", "--device", asked, "--json"])
        assert done.exit_code == 0, done.output
        report = json.loads(done.stdout)
        assert report["device"] == used
        assert list(report["accelerators"]) == ["cuda:0 (Card 0)"]
