"""A cell that is run twice: the finished run is not repeated, and anything else is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import graftlm
from graftlm.adapters import lora_parameters
from graftlm.config import RunConfig, validate
from graftlm.errors import ConfigError, ResourceError

ROWS = [{"prompt": f"say {word}", "completion": f"{word}!"} for word in ("one", "two", "three")]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTLM_CACHE", str(tmp_path / "cache"))


def request(model: Path, out: Path, **train: Any) -> RunConfig:
    tree: dict[str, Any] = {
        "method": "lora",
        "out": str(out),
        "model": {"name": str(model)},
        "data": {"max_length": 64},
        "lora": {"rank": 4},
        "train": {"steps": 2, "batch_size": 2} | train,
    }
    return validate(RunConfig, tree)


def in_hand(folder: Path) -> tuple[Any, Any]:
    model, tokenizer = graftlm.load_model(str(folder), quantize=None)
    torch.manual_seed(0)
    graftlm.add_lora(model, graftlm.LoRAConfig(rank=4))
    return model, tokenizer


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in lora_parameters(model)}


def test_a_finished_run_is_returned_and_not_repeated(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[dict[str, Any]] = []
    asked = request(tiny_llama, tmp_path / "run")
    first = graftlm.run(asked, ROWS, progress=False, hooks=[seen.append])
    assert [row["step"] for row in seen] == [1, 2]
    again = graftlm.run(asked, list(ROWS), progress=False, hooks=[seen.append])
    assert again == first
    assert len(seen) == 2
    assert "finished before" in capsys.readouterr().err


def test_other_settings_or_rows_in_the_same_folder_are_refused(
    tiny_llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    graftlm.run(request(tiny_llama, out), ROWS, progress=False)
    with pytest.raises(ConfigError, match=r"Choose another out(.|\n)*train\.steps: the run has 2"):
        graftlm.run(request(tiny_llama, out, steps=3), ROWS, progress=False)
    with pytest.raises(ConfigError, match=r"data\.train"):
        graftlm.run(request(tiny_llama, out), ROWS[:2], progress=False)
    longer = graftlm.run(request(tiny_llama, out, steps=3), ROWS, resume=True, progress=False)
    assert longer.steps == 3


def test_rows_of_a_file_that_has_changed_are_refused(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    own = tmp_path / "rows.jsonl"
    own.write_bytes(rows_file.read_bytes())
    asked = request(tiny_llama, tmp_path / "run")
    graftlm.run(asked, own, progress=False)
    own.write_bytes(rows_file.read_bytes() + b'{"prompt": "x", "completion": "y"}\n')
    with pytest.raises(ConfigError, match=r"other rows: .*rows\.jsonl has changed"):
        graftlm.run(asked, own, progress=False)


def test_an_unfinished_run_is_refused_until_it_is_resumed(tiny_llama: Path, tmp_path: Path) -> None:
    class Pause(graftlm.Hook):
        def step_ends(self, active: Any) -> None:
            active.pause()

    asked = request(tiny_llama, tmp_path / "run")
    assert not graftlm.run(asked, ROWS, progress=False, hooks=[Pause()]).finished
    with pytest.raises(ResourceError, match=r"resume=True"):
        graftlm.run(asked, ROWS, progress=False)
    assert graftlm.run(asked, ROWS, resume=True, progress=False).finished


def test_a_model_in_hand_gets_the_weights_of_the_finished_run(
    tiny_llama: Path, tmp_path: Path
) -> None:
    settings = graftlm.TrainConfig(steps=2, batch_size=2)
    model, tokenizer = in_hand(tiny_llama)
    first = graftlm.train(model, tokenizer, ROWS, settings, out=tmp_path / "run", progress=False)
    trained = weights(model)

    fresh, tokenizer = in_hand(tiny_llama)  # a kernel that was started again
    seen: list[Any] = []
    again = graftlm.train(
        fresh, tokenizer, ROWS, settings, out=tmp_path / "run", progress=False, hooks=[seen.append]
    )
    assert (again.steps, again.train_loss, again.finished) == (2, first.train_loss, True)
    assert not seen
    assert trained.keys() == weights(fresh).keys()
    assert all(torch.equal(value, weights(fresh)[name]) for name, value in trained.items())

    more = graftlm.TrainConfig(steps=3, batch_size=2)
    with pytest.raises(ConfigError, match="finished run of 2 steps"):
        graftlm.train(fresh, tokenizer, ROWS, more, out=tmp_path / "run", progress=False)


def test_rows_as_dicts_train_as_their_file_does(
    tiny_llama: Path, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    """The oracle: the same rows from a file, written by json."""
    import json

    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    found = []
    for name, rows in (("file", file), ("dicts", ROWS)):
        model, tokenizer = in_hand(tiny_llama)
        settings = graftlm.TrainConfig(steps=2, batch_size=2)
        graftlm.train(model, tokenizer, rows, settings, out=tmp_path / name, progress=False)
        found.append(weights(model))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
