"""Calibration: what is kept, what is not, and what a time is made of."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest

from graftlm.planning import calibration
from graftlm.planning.calibration import Calibration, calibrate
from graftlm.planning.cost import Cost

QUIET = Calibration({"matmul float32": 1e9}, 1e9, 1e-6, spread=0.1, share=0.97)
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


def test_a_busy_machine_makes_the_time_less_certain() -> None:
    cost = Cost()
    cost.flops["matmul float32"] = 10**9
    (quiet, sure), (busy, unsure) = QUIET.seconds(cost), BUSY.seconds(cost)
    assert quiet == busy == pytest.approx(1.0)
    assert unsure > busy > sure


def test_a_measured_machine_has_every_rate() -> None:
    found = calibration._measure()
    assert set(found.rates) == {kind for kind, _, _ in calibration._products()}
    assert all(rate > 0 for rate in found.rates.values())
    assert 0 < found.share <= 1
