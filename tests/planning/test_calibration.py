"""Calibration: what is kept, what is not, and what a time is made of."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest

from graftlm.planning import calibration
from graftlm.planning.calibration import Calibration, calibrate
from graftlm.planning.cost import Cost

QUIET = Calibration({"matmul float32": 1e9, "bytes": 1e9, "calls": 1e6}, spread=0.1, share=0.97)
BUSY = dataclasses.replace(QUIET, share=0.5)


def test_figures_of_a_busy_machine_are_used_once_and_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GRAFTLM_CACHE", str(tmp_path))
    answers = [BUSY, QUIET]
    monkeypatch.setattr(calibration, "_measure", lambda: answers.pop(0))
    with caplog.at_level(logging.WARNING, "graftlm"):
        assert calibrate() == BUSY
    assert "50 %" in caplog.text
    assert calibrate() == QUIET
    assert calibrate() == QUIET  # from the cache: there is no third answer


@pytest.mark.parametrize(
    "content",
    [b"", b"\0\xff", b"{}", b"[]", b'{"rates": {}}', b'{"rates": {"matmul float32": "fast", '
     b'"bytes": 1, "calls": 1}, "spread": 0, "share": 1}'],
)  # fmt: skip
def test_a_damaged_measurement_is_made_again(
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("GRAFTLM_CACHE", str(tmp_path))
    monkeypatch.setattr(calibration, "_measure", lambda: QUIET)
    calibrate()
    [file] = tmp_path.rglob(calibration.FILE)
    file.write_bytes(content)
    assert calibrate() == QUIET
    assert "is damaged" in capsys.readouterr().err
    assert calibrate() == QUIET
    file.unlink()
    assert calibrate() == QUIET
    file.unlink()
    file.parent.rmdir()
    file.parent.write_text("a file where the folder was")
    assert calibrate() == QUIET


def test_the_memory_of_a_process_is_measured_again_where_its_record_is_damaged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from graftlm.planning import baseline_memory
    from graftlm.planning.trial_run import Measured

    measured = Measured(3, 2, 1, 0.5)

    def measure(_: object, target: Path) -> None:
        (target / baseline_memory.FILE).write_text(json.dumps(dataclasses.asdict(measured)))

    monkeypatch.setenv("GRAFTLM_CACHE", str(tmp_path))
    monkeypatch.setattr(baseline_memory, "_measure", measure)
    assert baseline_memory.framework_memory() == measured
    [file] = tmp_path.rglob(baseline_memory.FILE)
    for content in (b"", b"\xff", b"{}", b'{"peak_bytes": "x"}'):
        file.write_bytes(content)
        assert baseline_memory.framework_memory() == measured
        assert "is damaged" in capsys.readouterr().err


def test_a_busy_machine_makes_the_time_less_certain() -> None:
    cost = Cost({"matmul float32": 10**9})
    (quiet, sure), (busy, unsure) = QUIET.seconds(cost), BUSY.seconds(cost)
    assert quiet == busy == pytest.approx(1.0)
    assert unsure > busy > sure


def test_a_measured_machine_has_every_rate() -> None:
    found = calibration._measure()
    products = {kind for kind, _, _ in calibration._products()}
    assert set(found.rates) == {*products, "bytes", "calls"}
    assert all(rate > 0 for rate in found.rates.values())
    assert 0 < found.share <= 1
