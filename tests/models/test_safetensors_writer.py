"""Files written a tensor at a time, against safetensors itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from graftlm.errors import ModelError
from graftlm.models import safetensors_writer, shard_writer
from graftlm.models.safetensors_file import DTYPES, Checkpoint, read_header
from graftlm.models.safetensors_writer import SafetensorsWriter
from graftlm.models.shard_writer import ShardWriter

SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
CONTENTS = st.lists(st.tuples(SHAPES, st.sampled_from(sorted(DTYPES))), max_size=12)


def tensor_of(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    made = torch.Generator().manual_seed(seed)
    count = int(torch.Size(shape).numel()) * dtype.itemsize
    content = torch.randint(256 if dtype is not torch.bool else 2, (count,), generator=made)
    return content.to(torch.uint8).view(dtype).view(shape)


@given(CONTENTS)
def test_safetensors_reads_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, contents: list[tuple[tuple[int, ...], str]]
) -> None:
    file = tmp_path_factory.mktemp("written") / "model.safetensors"
    writer = SafetensorsWriter(file)
    tensors = {
        f"t{index}": tensor_of(shape, DTYPES[kind], index)
        for index, (shape, kind) in enumerate(contents)
    }
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.close()
    found = load_file(file)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert found[name].view(-1).view(torch.uint8).equal(tensor.view(-1).view(torch.uint8))
    for stored in read_header(file).values():  # so that it can be mapped
        assert stored.start % stored.dtype.itemsize == 0
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_a_tensor_that_is_not_contiguous(tmp_path: Path) -> None:
    weight = torch.arange(12.0).view(3, 4)
    writer = SafetensorsWriter(tmp_path / "model.safetensors")
    writer.add("weight", weight.T)
    writer.close()
    assert torch.equal(Checkpoint(tmp_path).map("weight"), weight.T)


def test_a_type_without_a_name_is_refused(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="complex64"):
        writer.add("weight", torch.zeros(3, dtype=torch.complex64))
    writer.discard()


def test_a_name_that_comes_twice_or_is_too_long_is_refused(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path / "model.safetensors")
    writer.add("weight", torch.zeros(8))
    for name in ("weight", "w" * 300_000):
        with pytest.raises(ModelError, match="comes twice, or is longer"):
            writer.add(name, torch.zeros(8))
    writer.close()
    assert [*load_file(tmp_path / "model.safetensors")] == ["weight"]


def test_an_unfinished_file_is_refused(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path / "model.safetensors")
    writer.add("weight", torch.zeros(8))
    writer.discard()
    with pytest.raises(ModelError, match="not a valid safetensors file"):
        Checkpoint(tmp_path)


def test_a_full_header_begins_another_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_writer, "DATA_START", 4096)
    with ShardWriter(tmp_path) as writer:
        for index in range(100):
            writer.add(f"layers.{index}.weight", torch.full((3,), float(index)))
    found = Checkpoint(tmp_path)
    assert len({stored.file for stored in found.values()}) > 1
    assert [found.read(f"layers.{index}.weight")[0] for index in range(100)] == [*range(100)]


def test_an_error_leaves_no_finished_shard(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path)
    writer.add("good", torch.zeros(4))
    with pytest.raises(ModelError, match="NaN"), writer:
        writer.add("bad", torch.full((4,), float("nan")))
    assert [file.name for file in tmp_path.iterdir()] == ["shard-0.safetensors"]
    with pytest.raises(ModelError):
        read_header(tmp_path / "shard-0.safetensors")


def test_numbers_are_looked_at_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writer, "CHECKED_AT_ONCE", 4)
    weight = torch.zeros(3, 5)
    weight[2, 4] = float("inf")
    with pytest.raises(ModelError, match="infinite"), ShardWriter(tmp_path) as writer:
        writer.add("weight", weight)
