"""`quantize --calibrate`: nearer to the dense model than plain rounding, of the same size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from graftlm.data.batch import collate
from graftlm.data.shipped_text import TEXT, shipped_examples
from graftlm.errors import ModelError
from graftlm.frozen.linear import FrozenLinear
from graftlm.models import load_model, load_tokenizer, quantize_folder
from graftlm.models.quantize_calibrated import calibration_rows, quantize_calibrated
from tests.oracles.model_families import tiny_model
from tests.oracles.tiny_architectures import tiny_model as tiny_model_of


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request: Any, tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("base") / request.param
    tiny_model(request.param).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def test_logits_are_nearer_to_the_dense_model(base: Path, tmp_path: Path, rows_file: Path) -> None:
    report = quantize_calibrated(base, tmp_path / "fitted", str(rows_file))
    plain = quantize_folder(base, tmp_path / "plain")
    assert abs(report["bytes"] - plain["bytes"]) < 1000  # the length of a number in JSON
    assert report["quantized_layers"] == plain["quantized_layers"]
    assert report["rounded_plainly"] == []
    tokenizer = load_tokenizer(base)
    batch = collate(calibration_rows(str(rows_file), tokenizer), 0)
    real = slice(None) if batch.attention_mask is None else batch.attention_mask
    with torch.no_grad():
        dense, fitted, rounded = (
            load_model(folder, quantize=None)[0](
                input_ids=batch.input_ids, attention_mask=batch.attention_mask
            ).logits[real]
            for folder in (base, tmp_path / "fitted", tmp_path / "plain")
        )
    assert float((fitted - dense).norm()) < 0.8 * float((rounded - dense).norm())
    model, _ = load_model(tmp_path / "fitted", quantize=None)
    assert any(isinstance(m, FrozenLinear) for m in model.modules())


def test_layers_that_are_not_called_are_said(
    tmp_path: Path, tiny_tokenizer: Any, rows_file: Path
) -> None:
    model = tiny_model_of("mamba")
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    report = quantize_calibrated(tmp_path / "base", tmp_path / "fitted", str(rows_file))
    names = [name for name, _ in model.named_modules() if name.endswith("dt_proj")]
    assert report["rounded_plainly"] == names
    assert len(names) < report["quantized_layers"]


def test_a_folder_that_is_quantised_already_is_refused(base: Path, tmp_path: Path) -> None:
    quantize_folder(base, tmp_path / "nf4")
    with pytest.raises(ModelError, match="quantised already"):
        quantize_calibrated(tmp_path / "nf4", tmp_path / "again")


def test_the_shipped_text_is_diverse_and_cut_into_windows(tiny_tokenizer: Any) -> None:
    text = TEXT.read_text(encoding="utf-8")
    for part in ("def ", "SELECT", "Việt", "Theorem", "Осенью", "今天", "User:"):
        assert part in text
    rows = shipped_examples(tiny_tokenizer, 64)
    assert len(rows) > 300
    assert {len(row) for row in rows} == {64}
    assert {int(row.input_ids[0]) for row in rows} == {tiny_tokenizer("a").input_ids[0]}
