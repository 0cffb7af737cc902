"""The end of a pass over the data ends a step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import graftlm
from graftlm.data.sampler import batches
from graftlm.errors import ArtifactError
from graftlm.training.resolve import steps_in


def settings(model: Path, rows: Path, out: Path, **train: Any) -> graftlm.RunConfig:
    return graftlm.RunConfig(
        method="lora",
        out=str(out),
        model=graftlm.ModelConfig(name=str(model)),
        data=graftlm.DataConfig(train=str(rows), max_length=64),
        lora=graftlm.LoRAConfig(rank=2),
        train=graftlm.TrainConfig(**train),
    )


def first_rows(rows_file: Path, count: int, folder: Path) -> Path:
    lines = rows_file.read_text(encoding="utf-8").splitlines()[:count]
    path = folder / f"{count}.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_one_pass_of_few_rows_under_a_large_accumulation_reads_each_row_once(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    rows = first_rows(rows_file, 9, tmp_path)
    one = settings(
        tiny_llama, rows, tmp_path / "one", epochs=1, batch_size=1, gradient_accumulation_steps=64
    )
    result = graftlm.run(one, progress=False)
    all_at_once = settings(tiny_llama, rows, tmp_path / "all", steps=1, batch_size=9)
    expected = graftlm.run(all_at_once, progress=False)
    assert result.steps == 1
    assert result.tokens == expected.tokens
    assert result.train_loss == pytest.approx(expected.train_loss, rel=1e-5)


@given(
    rows=st.integers(1, 40),
    batch=st.integers(1, 9),
    count=st.integers(1, 9),
    epochs=st.integers(1, 4),
)
def test_every_pass_has_each_row_once(rows: int, batch: int, count: int, epochs: int) -> None:
    """As the run counts: the steps of a pass divide its batches, in order."""
    per_pass = len(batches([1] * rows, batch, 0, 0, group_by_length=False))
    per_epoch = -(-per_pass // count)
    assert steps_in(rows, batch, count, epochs) == epochs * per_epoch
    taken = [min(per_pass, (k + 1) * count) - k * count for k in range(per_epoch)]
    assert sum(taken) == per_pass
    assert min(taken) >= 1


def test_half_a_pass_and_passes_and_a_half() -> None:
    assert steps_in(16, 1, 4, 0.5) == 2
    assert steps_in(16, 1, 4, 2.5) == 10
    assert steps_in(9, 1, 4, 1.5) == 3 + 2
    assert steps_in(3, 1, 64, 0.1) == 1


@pytest.mark.parametrize("accumulation", [3, 2])
def test_an_older_run_whose_steps_crossed_passes_is_refused(
    accumulation: int, tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    rows, out = first_rows(rows_file, 8, tmp_path), tmp_path / "run"
    config = settings(
        tiny_llama,
        rows,
        out,
        steps=6,
        batch_size=2,
        save_steps=2,
        keep_checkpoints=9,
        gradient_accumulation_steps=accumulation,
    )
    graftlm.run(config, progress=False)
    whole = (out / "adapter" / "adapter_model.safetensors").read_bytes()
    (out / "summary.json").unlink()
    for folder in (out / "adapter", out / "checkpoints" / "step-4", out / "checkpoints" / "step-6"):
        shutil.rmtree(folder)
    state = out / "checkpoints" / "step-2" / "state.json"
    recorded = json.loads(state.read_text())
    del recorded["row_order"]  # as older versions wrote it
    state.write_text(json.dumps(recorded))
    if accumulation == 3:  # 4 batches a pass
        with pytest.raises(ArtifactError, match="begun by an older graftlm"):
            graftlm.run(config, resume=True, progress=False)
    else:
        graftlm.run(config, resume=True, progress=False)
        assert (out / "adapter" / "adapter_model.safetensors").read_bytes() == whole
