"""What each rank loads under FSDP2: a script that torchrun starts, see `test_loading.py`.

torchrun ... ranks_load.py METHOD MODEL [METHOD MODEL ...]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from graftlm.config import RunConfig, validate
from graftlm.distributed.group import joined
from graftlm.models.safetensors_file import Checkpoint
from graftlm.training.adapted_model import adapted_model

read: dict[str, int] = {}
part, rest = Checkpoint.elements, Checkpoint.read


def elements(self: Checkpoint, name: str, start: int, stop: int) -> Any:
    read[name] = read.get(name, 0) + stop - start
    return part(self, name, start, stop)


def copied(self: Checkpoint, name: str) -> Any:
    tensor = rest(self, name)
    read[name] = read.get(name, 0) + tensor.numel()
    return tensor


def compare(method: str, model: str, world: int) -> int:
    """Check one model; the number of tensors that this rank holds in part."""
    tree = {"method": method, "model": {"name": model}, "device": "cpu"}
    whole = adapted_model(validate(RunConfig, tree))
    read.clear()
    shared = adapted_model(validate(RunConfig, tree | {"distributed": "fsdp"}))
    for name, count in read.items():  # mapped ones are not read here
        size = Checkpoint(Path(model))[name].shape
        if len(size) == 2 and "experts" not in name:
            assert count <= -(-size[0] // world) * size[1] + 2 * 64, (name, count, size)
    theirs, cut = dict(whole.named_parameters()) | dict(whole.named_buffers()), 0
    for name, parameter in shared.named_parameters():
        full, wanted = getattr(parameter, "full_tensor", None), theirs[name]
        if full is not None:
            cut += 1
            local = parameter.to_local()
            assert local.numel() <= -(-wanted.shape[0] // world) * wanted[0].numel()
        found = parameter if full is None else full()
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted), name
    assert len(list(shared.named_parameters())) == len(theirs) - len(dict(shared.named_buffers()))
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(shared(input_ids=ids).logits, whole(input_ids=ids).logits)
    return cut


def main(words: list[str]) -> None:
    Checkpoint.elements, Checkpoint.read = elements, copied  # type: ignore[method-assign]
    with joined() as group:
        for method, model in zip(words[::2], words[1::2], strict=True):
            cut = compare(method, model, group.processes.world_size)
            print(f"equal: {method} {Path(model).name}, {cut} tensors in parts")


if __name__ == "__main__":
    main(sys.argv[1:])
