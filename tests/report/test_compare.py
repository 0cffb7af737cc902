"""A comparison: equal tokens, resumable, and what it measures is what the runs hold.

The runs are done in this process, but for one test: starting a process takes seconds.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from graftlm.config import RunConfig, validate
from graftlm.errors import ConfigError, DataError, RequestError, TrainingError
from graftlm.report.compare import api, launch
from graftlm.report.compare.api import Comparison, compare
from graftlm.report.compare.figures import Spread
from graftlm.report.compare.measure import scored_rows
from graftlm.report.compare.page import write_comparison
from graftlm.report.compare.table import table
from graftlm.report.compare.variants import jobs, variants
from graftlm.training.hooks.metrics_file import read_metrics
from tests.report.here import Here


def settings(model: Path, data: Path, **train: Any) -> RunConfig:
    tree = {
        "model": {"name": str(model)},
        "data": {"train": str(data), "eval": str(data), "max_length": 64},
        "lora": {"rank": 4},
        "train": {"steps": 4, "batch_size": 2, "eval_steps": 2, "learning_rate": 3e-3} | train,
    }
    return validate(RunConfig, tree)


@pytest.fixture(scope="module")
def done(tiny_llama: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    out = tmp_path_factory.mktemp("compare") / "cmp"
    return compare(settings(tiny_llama, rows_file), out, score_rows=2, run_job=Here())


def test_methods_read_the_same_tokens_and_train_what_they_should(done: Comparison) -> None:
    full, lora, qlora = done.columns
    assert full.tokens == lora.tokens == qlora.tokens > 0
    assert full.trainable_parameters.mean > lora.trainable_parameters.mean
    assert lora.trainable_parameters == qlora.trainable_parameters
    assert full.artifact_bytes.mean > lora.artifact_bytes.mean
    assert lora.eval_before.mean == pytest.approx(full.eval_before.mean, rel=1e-5)
    assert qlora.eval_before.mean != lora.eval_before.mean  # its base is in 4 bits
    for one in done.columns:
        assert one.eval_loss.mean < one.eval_before.mean
        assert one.gap.mean == pytest.approx(one.eval_loss.mean - one.train_loss.mean)
        assert one.gap.mean == pytest.approx(0, abs=1e-4)  # held-out rows are training rows here
        assert one.forgetting.mean == pytest.approx(
            one.outside_after.mean - one.outside_before.mean
        )
        assert one.exact_match == Spread(0.0)


def test_pages_hold_the_verdict_the_table_and_escaped_names(done: Comparison) -> None:
    page = write_comparison(done).read_text(encoding="utf-8")
    for sentence in done.verdict:
        assert sentence.replace("'", "&#39;") in page
    assert page.count('<svg viewBox="0 0 420') == 4
    assert 'class="n best"' in page
    for job in done.jobs:
        assert (job.folder / "report.html").is_file()
        assert f"runs/{job.folder.name}/report.html" in page
        assert not (job.folder / "checkpoints").exists()
    kept = json.loads((done.out / "compare.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in kept["columns"]] == ["Full", "LoRA", "QLoRA"]
    assert kept["report"] == str(done.out / "compare.html")


def test_the_best_of_a_row_is_marked_and_ties_are_not(done: Comparison) -> None:
    rows = {row.name: row for row in table(done.columns)}
    best = min(done.columns, key=lambda one: one.eval_loss.mean).name
    marks = [cell.best for cell in rows["held-out loss after"].cells]
    assert marks[[one.name for one in done.columns].index(best)]
    assert not any(cell.best for cell in rows["right answers"].cells)
    assert [cell.best for cell in rows["size of the result"].cells] == [False, True, True]
    assert all(cell.spread == "" for row in rows.values() for cell in row.cells)


def test_finished_runs_are_used_again_and_others_added(
    done: Comparison, tiny_llama: Path, rows_file: Path
) -> None:
    here = Here()
    config = settings(tiny_llama, rows_file)
    again = compare(config, done.out, score_rows=2, run_job=here)
    assert here.began == []
    assert again.columns == done.columns
    lora = compare(
        config, done.out, methods=["lora"], seeds=2, ranks=[4], score_rows=2, run_job=here
    )
    assert here.began == ["new"]
    assert lora.columns[0].eval_loss.count == 2
    assert lora.columns[0].eval_loss.deviation is not None
    assert lora.verdict[-1] == "Means over 2 seeds."
    assert "±" in write_comparison(lora).read_text(encoding="utf-8")
    write_comparison(done)


def test_a_run_with_other_settings_or_rows_is_refused(
    done: Comparison, tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    other = settings(tiny_llama, rows_file, learning_rate=1.0)
    with pytest.raises(ConfigError, match=r"other settings(.|\n)*train\.learning_rate"):
        compare(other, done.out, run_job=Here())
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows_file.read_text(encoding="utf-8"), encoding="utf-8")
    config = settings(tiny_llama, rows, steps=1)
    compare(config, tmp_path / "cmp", methods=["lora"], run_job=Here())
    rows.write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"rows\.jsonl has changed"):
        compare(config, tmp_path / "cmp", methods=["lora"], run_job=Here())


def test_a_stopped_comparison_goes_on(
    done: Comparison, tiny_llama: Path, rows_file: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Stopped inside a run, after its first evaluation; and in another before any checkpoint."""
    from graftlm.training import loop

    config, out = settings(tiny_llama, rows_file), tmp_path / "cmp"
    real = loop.train_step
    calls = 0

    def stopping(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise loop.Interrupted
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            compare(config, out, methods=["lora"], score_rows=2, run_job=Here())
    qlora = out / "runs" / "qlora-r4-seed0"
    here = Here()
    qlora.mkdir(parents=True)
    text = (done.out / "runs" / "qlora-r4-seed0" / "config.yaml").read_text(encoding="utf-8")
    (qlora / "config.yaml").write_text(text, encoding="utf-8")
    found = compare(config, out, methods=["lora", "qlora"], score_rows=2, run_job=here)
    assert here.began == ["resume", "new"]
    expected = {one.name: one.eval_loss for one in done.columns}
    for one in found.columns:
        assert one.eval_loss == expected[one.name]


def test_one_seed_draws_the_same_batches_for_every_method(done: Comparison) -> None:
    read = [
        [row["tokens"] for row in read_metrics(job.folder / "metrics.jsonl")] for job in done.jobs
    ]
    assert read[0] == read[1] == read[2]


def test_variants_have_the_ranks_they_can_have_and_one_strength() -> None:
    columns = variants(["full", "lora", "qlora", "lora"], [4, 16])
    assert [one.folder for one in columns] == [
        "full", "lora-r4", "lora-r16", "qlora-r4", "qlora-r16",
    ]  # fmt: skip
    assert columns[1].name == "LoRA rank 4"
    work = jobs(RunConfig(), columns, 2, Path("out"))
    assert [job.seed for job in work] == [0] * 5 + [1] * 5
    assert {job.config.lora.alpha / job.config.lora.rank for job in work} == {2.0}
    assert len({job.config.out for job in work}) == 10


def test_every_problem_of_a_request_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as told:
        compare(RunConfig(), tmp_path, seeds=0, score_rows=-1)
    assert len(told.value.problems) == 5
    with pytest.raises(ConfigError, match=r"'lorra'(.|\n)*rank 0"):
        compare(RunConfig(), tmp_path, methods=["lorra"], ranks=[0])


def test_scoring_needs_rows_with_answers(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "just text"}\n', encoding="utf-8")
    config = validate(RunConfig, {"data": {"train": str(path), "eval": str(path)}})
    with pytest.raises(DataError, match="score-rows"):
        scored_rows(config, 3)


def test_scored_rows_are_held_out_ones(rows_file: Path) -> None:
    config = validate(RunConfig, {"data": {"train": str(rows_file), "eval_fraction": 0.3}})
    rows = scored_rows(config, 1000)
    assert 4 <= len(rows) <= 24
    assert scored_rows(config, 2) == rows[:2]


def test_a_process_of_its_own_trains_measures_and_plans(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    config = settings(tiny_llama, rows_file, steps=2)
    found = compare(config, tmp_path / "cmp", methods=["qlora"])
    [one] = found.columns
    assert one.peak_memory.mean > 1e8
    assert sum(one.planned.values()) == pytest.approx(one.peak_memory.mean, rel=0.25)


def test_a_wrong_request_in_the_process_is_one_here(tmp_path: Path, tiny_llama: Path) -> None:
    config = settings(tiny_llama, tmp_path / "nowhere.jsonl")
    lora = config.model_copy(update={"method": "lora", "out": str(tmp_path / "run")})
    measure = {"outside": str(api.OUTSIDE), "score_rows": 0, "plan": False}
    request = {"config": lora.model_dump(mode="json"), "train": "new", "measure": measure}
    with pytest.raises(RequestError, match=r"2 of 3: .*nowhere\.jsonl"):
        launch.launch(request, "2 of 3")


@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", TrainingError, "memory ran"),
        ("raise SystemExit(3)", TrainingError, "failed"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", KeyboardInterrupt, None),
    ],
)
def test_how_a_process_ended_is_understood(
    script: str, error: type[BaseException], words: str | None, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    program = tmp_path / "program"
    program.write_text(f"#!{sys.executable}\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(launch.sys, "executable", str(program))
    with pytest.raises(error, match=words):
        launch.launch({}, "one")
    assert signal.getsignal(signal.SIGTERM) is before
