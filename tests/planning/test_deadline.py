"""A plan ends within its time limit, and says where it was."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import graftlm
from graftlm.cli import main
from graftlm.cli.plan import plan as command
from graftlm.config import RunConfig
from graftlm.errors import ResourceError
from graftlm.planning.deadline import PLAN_SECONDS, ends_after


def test_it_raises_at_every_step_after_the_end() -> None:
    said: list[str] = []
    ends_after(60, said.append)("one")
    over = ends_after(-1, said.append)
    for text in ("two", "three"):
        with pytest.raises(ResourceError, match=f"it was at: {text}"):
            over(text)
    assert said == ["one"]


def test_a_plan_ends_in_the_middle_of_a_trace(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("graftlm.planning.deadline.time", SimpleNamespace(monotonic=lambda: now[0]))

    def hangs_in_the_backward_pass(text: str) -> None:
        if "backward, layer 2" in text:
            now[0] = 1e9

    with pytest.raises(ResourceError, match=r"within 7 s; .* backward, layer \d of 2"):
        graftlm.plan(
            RunConfig.model_validate(
                {"model": {"name": str(tiny_llama)}, "data": {"max_length": 64}}
            ),
            memory="8GB",
            device="cuda",
            methods=("lora",),
            progress=hangs_in_the_backward_pass,
            time_limit=7,
        )


@pytest.mark.parametrize(
    ("limit", "says"),
    [("0.000001", "the plan was not done within 1e-06 s; it was at: "), ("nan", "more than 0")],
)
def test_the_command_ends_with_2(
    limit: str,
    says: str,
    tiny_llama: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["plan", str(tiny_llama), "--memory", "8GB", "--methods", "lora", "--json"]
    monkeypatch.setattr(sys, "argv", ["graftlm", *words, "--time-limit", limit])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert says in said.err
    assert "Traceback" not in said.err


def test_the_command_has_the_limit_of_the_function() -> None:
    default = inspect.signature(command).parameters["time_limit"].default
    assert default == inspect.signature(graftlm.plan).parameters["time_limit"].default
    assert default == PLAN_SECONDS
