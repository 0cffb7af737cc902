"""What a run folder takes in, refuses and says, over the life of a run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import filelock
import pytest

import graftlm
from graftlm.config import RunConfig, validate
from graftlm.errors import ArtifactError, ConfigError, ModelError, ResourceError
from graftlm.training import loop, run
from graftlm.training.hooks.metrics_file import read_metrics
from graftlm.training.lock import locked


def request(model: Path, rows: Path, out: Path, **train: Any) -> RunConfig:
    tree: dict[str, Any] = {
        "method": train.pop("method", "lora"),
        "out": str(out),
        "model": {"name": str(model)},
        "data": {"train": str(rows), "max_length": 64} | train.pop("data", {}),
        "lora": {"rank": 4},
        "train": {"steps": 2, "batch_size": 2, "schedule": "constant"} | train,
    }
    return validate(RunConfig, tree)


def weights(out: Path) -> bytes:
    return (out / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_finished_run_that_is_extended_equals_one_that_had_all_steps_from_the_start(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    """With a constant learning rate, which does not depend on the number of steps."""
    run(request(tiny_llama, rows_file, tmp_path / "whole", steps=4, warmup_ratio=0.0))
    short = request(tiny_llama, rows_file, tmp_path / "short", steps=2, warmup_ratio=0.0)
    assert run(short).steps == 2
    longer = short.model_copy(update={"train": short.train.model_copy(update={"steps": 4})})
    result = run(longer, resume=True)
    assert (result.steps, result.finished, result.kept_step) == (4, True, 4)
    assert weights(tmp_path / "whole") == weights(tmp_path / "short")
    assert [row["step"] for row in read_metrics(tmp_path / "short" / "metrics.jsonl")] == [
        1,
        2,
        3,
        4,
    ]


def test_fewer_steps_than_a_run_has_made_are_refused(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    asked = request(tiny_llama, rows_file, tmp_path / "run", steps=2)
    run(asked)
    fewer = asked.model_copy(update={"train": asked.train.model_copy(update={"steps": 1})})
    with pytest.raises(ConfigError, match=r"train\.steps: the run has 2, asked for 1"):
        run(fewer, resume=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", "{bad\n"),
        ("metrics.jsonl", '{"loss": 1}\n'),
        ("provenance.json", "{bad"),
        ("provenance.json", '{"base": null}'),
        ("summary.json", "[]"),
    ],
)
def test_a_damaged_record_is_named_and_no_traceback(
    name: str, content: str, tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    asked = request(tiny_llama, rows_file, tmp_path / "run")
    run(asked)
    (tmp_path / "run" / name).write_text(content)
    before = weights(tmp_path / "run")
    longer = asked.model_copy(update={"train": asked.train.model_copy(update={"steps": 3})})
    with pytest.raises(ArtifactError, match=f"{name}.*damaged|entry base .* damaged"):
        run(longer, resume=True)
    assert weights(tmp_path / "run") == before


def test_the_summary_says_which_weights_were_kept(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    asked = request(
        tiny_llama, rows_file, tmp_path / "run", steps=4, eval_steps=1, learning_rate=20.0,
        warmup_ratio=0.0, data={"eval": str(rows_file)},
    )  # fmt: skip
    result = run(asked)
    measured = [row["eval_loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert result.kept_step == 1 + measured.index(min(measured))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["kept_step"] == (
        result.kept_step
    )


def test_a_run_that_ended_before_its_first_checkpoint_may_be_started_again_or_resumed(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def dying(*_: Any, **__: Any) -> Any:
        raise Killed

    run(request(tiny_llama, rows_file, tmp_path / "whole"))
    for name, resume in (("again", False), ("resumed", True)):
        asked = request(tiny_llama, rows_file, tmp_path / name)
        with monkeypatch.context() as patch:
            patch.setattr(loop, "train_step", dying)
            with pytest.raises(Killed):
                run(asked)
        assert (tmp_path / name / "config.yaml").exists()
        assert run(asked, resume=resume).finished
        assert weights(tmp_path / name) == weights(tmp_path / "whole")


def test_a_run_does_not_go_on_with_other_rows_or_another_base(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    model, rows = tmp_path / "model", tmp_path / "rows.jsonl"
    shutil.copytree(tiny_llama, model)
    shutil.copy(rows_file, rows)
    asked = request(model, rows, tmp_path / "run")
    run(asked)
    first = rows.read_bytes()
    rows.write_bytes(first + b'{"prompt": "one", "completion": "more"}\n')
    with pytest.raises(ArtifactError, match=r"since it began, .*rows\.jsonl.* changed"):
        run(asked, resume=True)
    rows.write_bytes(first)
    assert run(asked, resume=True).finished
    content = bytearray((model / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match="the weights of the base model"):
        run(asked, resume=True)


def test_rows_of_a_folder_are_compared_too(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows").mkdir()
    shutil.copy(rows_file, tmp_path / "rows" / "a.jsonl")
    asked = request(tiny_llama, tmp_path / "rows", tmp_path / "run")
    run(asked)
    (tmp_path / "rows" / "b.jsonl").write_text('{"prompt": "one", "completion": "more"}\n')
    with pytest.raises(ArtifactError, match="the rows to train on"):
        run(asked, resume=True)


def test_a_second_process_is_refused_and_told_who_holds_the_folder(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from graftlm.training.lock import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    out = tmp_path / "run"
    asked = request(tiny_llama, rows_file, out)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(out)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            with pytest.raises(ResourceError, match=f"is in use: process {holder.pid} on"):
                run(asked)
        finally:
            holder.kill()
    assert run(asked).finished  # a killed process holds nothing


def test_a_folder_that_stays_without_a_run_is_not_left_behind(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "a" / "b"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_the_lock_is_released_last_and_whatever_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock file that is deleted after the release may be the lock of another process."""
    there: list[bool] = []
    release, unlink = filelock.FileLock.release, Path.unlink

    def noting(self: Any, *arguments: Any, **named: Any) -> None:
        there.append(Path(self.lock_file).exists())
        release(self, *arguments, **named)

    def failing(self: Path, *arguments: Any, **named: Any) -> None:
        if self.name == ".running":
            raise PermissionError(13, "Permission denied")
        unlink(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(filelock.FileLock, "release", noting)
        with locked(tmp_path / "run"):
            pass
        assert there[0] is False
        patch.setattr(Path, "unlink", failing)
        with pytest.raises(PermissionError), locked(tmp_path / "run"):
            pass
    with locked(tmp_path / "run"):
        pass


def test_a_relative_folder_is_the_one_of_the_start(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    real = loop.train_step

    def moving(*arguments: Any, **named: Any) -> Any:
        os.chdir("/")
        return real(*arguments, **named)

    monkeypatch.setattr(loop, "train_step", moving)
    asked = request(tiny_llama, rows_file, tmp_path).model_copy(update={"out": "runs/here"})
    result = run(asked)
    assert result.adapter == str(tmp_path / "runs" / "here" / "adapter")
    assert Path(result.adapter).is_dir()


def test_what_could_not_be_saved_at_the_end_is_refused_at_the_start(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    said = {"do_sample": False, "temperature": 0.5, "eos_token_id": 257}
    (model / "generation_config.json").write_text(json.dumps(said))
    with pytest.raises(ModelError, match=r"generation_config\.json could not be saved"):
        run(request(model, rows_file, tmp_path / "run", method="full"))
    assert not (tmp_path / "run").exists()
    assert run(request(model, rows_file, tmp_path / "lora")).finished  # which does not save it


def test_a_missing_tensorboard_leaves_nothing(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ResourceError, match="tensorboard package"):
        run(request(tiny_llama, rows_file, tmp_path / "run", tracking="tensorboard"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"eval_steps": 2}, "needs rows to measure on"),
        ({"early_stopping_patience": 2, "data": {"eval_fraction": 0.2}}, "there are none"),
        ({"data": {"eval": "rows.jsonl", "eval_fraction": 0.2}}, "would not be used"),
    ],
)
def test_settings_that_would_not_be_used_are_refused(
    settings: dict[str, Any], why: str, tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=why):
        run(request(tiny_llama, rows_file, tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()


def test_rows_that_are_both_trained_on_and_measured_on_are_reported(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(request(tiny_llama, rows_file, tmp_path / "run", data={"eval": str(rows_file)}))
    assert "of the 40 rows to measure on are trained on too" in capfd.readouterr().err


def test_evaluations_of_a_model_in_hand_need_rows(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    model, tokenizer = graftlm.load_model(str(tiny_llama))
    graftlm.add_lora(model, graftlm.LoRAConfig(rank=4))
    settings = graftlm.TrainConfig(steps=2, eval_steps=1)
    with pytest.raises(ConfigError, match="pass them as eval_data"):
        graftlm.train(model, tokenizer, rows_file, settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
