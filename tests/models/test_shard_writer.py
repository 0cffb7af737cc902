from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from graftlm.models.shard_writer import ShardWriter


@pytest.mark.parametrize("max_bytes", [1, 40, 80, 81, 10_000])
def test_shards_stay_below_the_limit_and_hold_everything(max_bytes: int, tmp_path: Path) -> None:
    tensors = {f"t{n}": torch.full((n + 1,), float(n)) for n in range(9)}
    with ShardWriter(tmp_path, max_bytes) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
    files = sorted(tmp_path.glob("*.safetensors"))
    loaded = {file.name: load_file(file) for file in files}
    for shard in loaded.values():
        assert len(shard) == 1 or sum(tensor.nbytes for tensor in shard.values()) <= max_bytes
    everything = {name: tensor for shard in loaded.values() for name, tensor in shard.items()}
    assert everything.keys() == tensors.keys()
    assert all(torch.equal(everything[name], tensor) for name, tensor in tensors.items())
    index = tmp_path / "model.safetensors.index.json"
    if len(files) == 1:
        assert files[0].name == "model.safetensors"
        assert not index.exists()
    else:
        content = json.loads(index.read_text())
        assert content["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
        assert all(name in loaded[file] for name, file in content["weight_map"].items())
