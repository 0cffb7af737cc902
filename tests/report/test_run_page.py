"""The page of one run says what the run's files say."""

from __future__ import annotations

from pathlib import Path

import pytest

from graftlm.errors import ArtifactError
from graftlm.report.curves import held_out_curve, running_mean, training_curve
from graftlm.report.run_page import run_page, write_run_page
from tests.report.conftest import MakeRun


def test_page_has_the_figures_the_curves_and_the_settings(make_run: MakeRun) -> None:
    out = make_run()
    page = write_run_page(out).read_text(encoding="utf-8")
    assert page.count('<svg viewBox="0 0 420') == 4
    for said in ("2.1000 → 1.1100", "1.50 GB", "1,000 (1.00%)", "train.steps", "sha256"):
        assert said in page
    assert "&lt;model&gt;" in page
    assert "<model>" not in page
    assert "<script" not in page


def test_planned_memory_is_shown_beside_the_measured_one(make_run: MakeRun) -> None:
    page = run_page(make_run(), {"framework": 400_000_000, "weights": 1_000_000_000})
    assert "1.50 GB (planned 1.40 GB)" in page
    assert page.count("<rect") == 4  # two parts, and the same in the legend


def test_a_run_stopped_before_its_first_step_has_a_page(make_run: MakeRun) -> None:
    out = make_run(steps=1, finished=False, adapter=None, eval_loss_after=None, train_loss=None)
    (out / "metrics.jsonl").write_text("", encoding="utf-8")
    assert "stopped before its end" in run_page(out)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"summary\.json"):
        run_page(tmp_path)


def test_held_out_curve_begins_before_training_and_ends_after_it() -> None:
    summary = {"steps": 4, "eval_loss_before": 3.0, "eval_loss_after": 1.0}
    steps = [{"step": step, "loss": 2.0} for step in range(1, 5)]
    assert held_out_curve(steps, summary) == [(0, 3.0), (4, 1.0)]
    steps[1]["eval_loss"] = 1.0  # the best checkpoint, which the run went back to
    assert held_out_curve(steps, summary) == [(0, 3.0), (2, 1.0)]


def test_long_curves_are_averaged_and_keep_their_mean() -> None:
    rows = [{"step": step, "loss": float(step % 7)} for step in range(1, 2801)]
    curve = training_curve(rows)
    assert len(curve) == 400
    assert sum(y for _, y in curve) / 400 == pytest.approx(3.0)
    assert min(y for _, y in running_mean(curve)) == pytest.approx(3.0, abs=0.2)
