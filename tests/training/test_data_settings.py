"""Settings of the data that training itself has to honour."""

from __future__ import annotations

import json

import pytest

import graftlm
from graftlm.config import DataConfig, TrainConfig
from graftlm.errors import ConfigError, DataError
from graftlm.training.rows import packed, read_rows


@pytest.fixture
def opened(tiny_llama):
    model, tokenizer = graftlm.load_model(str(tiny_llama))
    graftlm.add_lora(model, graftlm.LoRAConfig(rank=2))
    return model, tokenizer


def test_packed_training_runs_on_fewer_rows(opened, rows_file, tmp_path):
    model, tokenizer = opened
    config = DataConfig(packing=True, max_length=64)
    rows, held = read_rows(tokenizer, config, str(rows_file), None)
    assert len(packed(rows, config)) < 40 / 2
    assert len(held) == 0
    result = graftlm.train(
        model,
        tokenizer,
        str(rows_file),
        TrainConfig(steps=2, batch_size=2),
        out=tmp_path / "run",
        data_config=config,
        progress=False,
    )
    assert result.steps == 2


def test_eval_fraction_holds_rows_out(opened, rows_file):
    _, tokenizer = opened
    config = DataConfig(eval_fraction=0.3)
    kept, held = read_rows(tokenizer, config, str(rows_file), None)
    assert len(kept) + len(held) == 40
    assert len(held) > 3


def test_a_model_that_mixes_packed_sequences_is_refused_before_training(
    opened, rows_file, tmp_path, monkeypatch
):
    model, tokenizer = opened
    forward = model.forward

    def without_positions(*args, position_ids=None, **kwargs):
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", without_positions)
    config = DataConfig(packing=True)
    with pytest.raises(ConfigError, match=r"data\.packing"):
        graftlm.train(model, tokenizer, str(rows_file), out=tmp_path / "run", data_config=config)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_lost_rows_are_told(opened, tmp_path, capsys):
    _, tokenizer = opened
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a", "completion": "b" * n} for n in (3, 90)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read_rows(tokenizer, DataConfig(max_length=32), str(path), None)
    assert "of 2 rows 1 dropped, longer than max_length=32" in capsys.readouterr().err


def test_a_share_that_holds_nothing_out_is_named(opened, rows_file):
    _, tokenizer = opened
    config = DataConfig(eval_fraction=1e-9)
    with pytest.raises(DataError, match=r"data\.eval_fraction=1e-09 of 40 examples leaves 40"):
        read_rows(tokenizer, config, str(rows_file), None)
