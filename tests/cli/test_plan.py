"""`graftlm plan` and `graftlm train --method auto`: what is printed, and exit codes."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from graftlm.cli import main
from graftlm.errors import TrainingError


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTLM_CACHE", str(tmp_path_factory.getbasetemp() / "plan-cache"))


def run(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["graftlm", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr()
    return int(stop.value.code or 0), said.out, said.err


def test_a_plan_says_what_fits_why_and_the_command(monkeypatch, capsys, tiny_llama, rows_file):
    code, out, _ = run(
        monkeypatch, capsys, "plan", tiny_llama, "--data", rows_file, "--memory", "8GB"
    )
    assert code == 0
    assert "Recommended: LoRA at 1 × " in out  # rows end to end
    assert f"graftlm train --model {tiny_llama} --data {rows_file} --method lora" in out
    assert out.count("yes") >= 6
    # The first line names the model, whose path may be of any length.
    table = out[: out.index("Recommended")].replace(str(tiny_llama), "tiny-llama").splitlines()
    assert sum(line.endswith("yes ←") for line in map(str.rstrip, table)) == 1  # nothing is cut off
    assert max(map(len, table)) <= 80


def test_a_plan_that_takes_long_says_how_far_it_is(monkeypatch, capsys, tiny_llama):
    monkeypatch.setattr("graftlm.system.heartbeat.EVERY", 0.02)
    code, out, err = run(
        monkeypatch, capsys, "plan", tiny_llama, "--memory", "8GB", "--device", "cuda",
        "--methods", "lora", "--max-length", 64, "--json",
    )  # fmt: skip
    assert code == 0
    json.loads(out)
    assert "planning: lora, embeddings keep, 64 long: " in err
    assert re.search(r"(forward|backward), layer \d of 2 \(\d+ s\)", err)


@pytest.mark.parametrize("as_json", [True, False])
def test_a_trial_that_fails_leaves_the_plan_and_ends_with_1(
    monkeypatch, capsys, tiny_llama, as_json
):
    def fail(*_: object, **__: object) -> None:
        raise TrainingError("the trial run was stopped [after 600 s]")

    monkeypatch.setattr("graftlm.planning.verify.run_trial", fail)
    code, out, _ = run(
        monkeypatch, capsys, "plan", tiny_llama, "--memory", "8GB", "--methods", "lora",
        "--max-length", 16, "--verify-all", *["--json"] * as_json,
    )  # fmt: skip
    assert code == 1
    if not as_json:
        assert "Recommended: LoRA" in out
        assert out.count("failed") == out.count("Not measured: ") >= 2
        assert "[after 600 s]" in out
        return
    result = json.loads(out)
    assert result["recommended"]["command"]
    assert len(result["verified"]) >= 2
    for entry in result["verified"]:
        assert entry["failure"] == "the trial run was stopped [after 600 s]"
        assert entry["measured_peak_bytes"] is entry["error"] is None


def test_json_is_one_object_even_when_nothing_fits(monkeypatch, capsys, tiny_llama):
    code, out, _ = run(
        monkeypatch, capsys, "plan", tiny_llama, "--memory", "1MB", "--methods", "qlora",
        "--max-length", 128, "--json",
    )  # fmt: skip
    result = json.loads(out)
    assert code == 0
    assert result["recommended"]["command"] is None
    assert result["recommended"]["missing_bytes"] > 0
    assert not any(option["fits"] for option in result["options"])


def test_auto_trains_what_fits(monkeypatch, capsys, tiny_llama, rows_file, tmp_path: Path):
    code, out, err = run(
        monkeypatch, capsys, "train", "--model", tiny_llama, "--data", rows_file,
        "--method", "auto", "--memory", "2GB", "--steps", 1, "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert code == 0
    assert "planned: lora, batches of 8 rows" in err
    assert json.loads(out)["method"] == "lora"
    assert "method: lora" in (tmp_path / "run" / "config.yaml").read_text()


def test_what_cannot_fit_is_not_started(monkeypatch, capsys, tiny_llama, rows_file, tmp_path: Path):
    out = tmp_path / "run"
    code, _, err = run(
        monkeypatch, capsys, "train", "--model", tiny_llama, "--data", rows_file,
        "--method", "qlora", "--memory", "90MB", "--out", out,
    )  # fmt: skip
    assert code == 2
    assert "nothing fits in 90.00 MB" in err
    assert "--memory" in err
    assert not out.exists()
