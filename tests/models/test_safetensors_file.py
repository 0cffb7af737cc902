from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from graftlm.errors import ModelError
from graftlm.models.safetensors_file import DTYPES, Checkpoint

TENSORS = {
    "a": torch.randn(3, 5),
    "b.weight": torch.randn(4, 4).bfloat16(),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 7),
    "flags": torch.tensor([True, False, True]),
    "bytes": torch.arange(7, dtype=torch.uint8),
    "longs": torch.arange(3),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


@pytest.mark.parametrize("how", ["read", "map"])
def test_tensors_come_back_as_written(how: str, folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    assert set(checkpoint) == set(TENSORS)
    for name, expected in TENSORS.items():
        found = getattr(checkpoint, how)(name)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_every_type_of_the_table_comes_back(tmp_path: Path) -> None:
    tensors = {name: torch.arange(6).view(2, 3).to(dtype) for name, dtype in DTYPES.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    for name, expected in tensors.items():
        for found in (checkpoint.read(name), checkpoint.map(name)):
            assert found.dtype == expected.dtype
            assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))


def test_mapped_tensors_share_one_map_and_outlive_the_checkpoint(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    first, second = checkpoint.map("a"), checkpoint.map("longs")
    size = (folder / "model.safetensors").stat().st_size
    assert abs(first.data_ptr() - second.data_ptr()) < size
    del checkpoint
    assert torch.equal(first, TENSORS["a"])


def test_dtype_is_that_of_most_bytes(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(10), "b": torch.ones(100).half(), "c": torch.ones(500).long()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert Checkpoint(tmp_path).dtype == torch.float16


@settings(
    deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cut=st.integers(min_value=1, max_value=400))
def test_truncated_file_is_refused_by_name(cut: int, folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    copy = folder / "cut"
    copy.mkdir(exist_ok=True)
    (copy / "model.safetensors").write_bytes(whole[:-cut] if cut < len(whole) else b"")
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        Checkpoint(copy)


@settings(
    deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(noise=st.binary(max_size=64))
def test_arbitrary_bytes_are_refused_by_name(noise: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(noise)
    if noise[:8] + noise[8:10] == (2).to_bytes(8, "little") + b"{}":
        return
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        Checkpoint(tmp_path)


def with_header(folder: Path, header: Any, data: bytes = b"\0" * 64) -> Path:
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + data
    (folder / "model.safetensors").write_bytes(content)
    return folder


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]},
        {"dtype": "F32", "shape": [4], "data_offsets": [60, 76]},
        {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]},
        {"dtype": "F32", "shape": [4], "data_offsets": [0]},
        {"dtype": "F32", "shape": [4.0], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": "4", "data_offsets": [0, 16]},
        {"dtype": "F31", "shape": [4], "data_offsets": [0, 16]},
        {"dtype": ["F32"], "shape": [4], "data_offsets": [0, 16]},
        {"shape": [4], "data_offsets": [0, 16]},
        [],
        None,
    ],
)
def test_impossible_entry_is_refused_with_the_tensors_name(entry: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.safetensors.*'culprit'"):
        Checkpoint(with_header(tmp_path, {"culprit": entry}))


def shard(folder: Path) -> Path:
    save_file({"a": torch.ones(2)}, folder / "model-1.safetensors")
    save_file({"b": torch.ones(2)}, folder / "model-2.safetensors")
    write_index(folder, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    return folder


def write_index(folder: Path, weight_map: Any) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    assert set(Checkpoint(shard(tmp_path))) == {"a", "b"}


def test_missing_shard_is_named(tmp_path: Path) -> None:
    (shard(tmp_path) / "model-2.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks model-2\.safetensors"):
        Checkpoint(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2), "b": torch.ones(2)}, shard(tmp_path) / "model-2.safetensors")
    with pytest.raises(ModelError, match=r"tensor 'a' twice, in model-2.* and in model-1"):
        Checkpoint(tmp_path)


def test_tensor_missing_from_its_shard_is_named(tmp_path: Path) -> None:
    write_index(shard(tmp_path), {"a": "model-1.safetensors", "lost": "model-1.safetensors"})
    with pytest.raises(ModelError, match="'lost'"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("weight_map", [{"a": "../model-1.safetensors"}, {"a": 3}, [], 7, {}])
def test_bad_index_is_refused(weight_map: Any, tmp_path: Path) -> None:
    write_index(shard(tmp_path), weight_map)
    with pytest.raises(ModelError, match="index"):
        Checkpoint(tmp_path)


def test_pickled_weights_are_never_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"not even a pickle")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin(.|\n)*save_pretrained"):
        Checkpoint(tmp_path)


def test_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weights"):
        Checkpoint(tmp_path)
