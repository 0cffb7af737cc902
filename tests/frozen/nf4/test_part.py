"""The parts that ranks quantise by themselves are those of the weight quantised at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from graftlm.errors import ModelError
from graftlm.frozen.nf4.frozen_nf4 import FrozenNF4
from graftlm.frozen.share import ShareOfWeight, cut
from graftlm.frozen.weight import FrozenWeight, WeightSettings

CPU = torch.device("cpu")


class _Source:
    """A matrix that notes which elements are read."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.shape, self.dtype = weight, tuple(weight.shape), weight.dtype
        self.read: list[int] = []

    def elements(self, start: int, stop: int) -> Tensor:
        self.read.append(stop - start)
        return self.weight.reshape(-1)[start:stop].clone()

    def whole(self) -> Tensor:
        return self.weight.clone()


class _Share:
    """A rank among threads."""

    def __init__(self, rank: int, world_size: int, parts: dict, barrier: threading.Barrier) -> None:
        self.rank, self.world_size = rank, world_size
        self._parts, self._barrier = parts, barrier

    def joined(self, part: Tensor) -> Tensor:
        self._parts[self.rank] = part
        self._barrier.wait(timeout=20)
        return torch.cat([self._parts[rank] for rank in range(self.world_size)])


def _shares(
    world_size: int, source: _Source, settings: WeightSettings, format: type[FrozenWeight]
) -> list[ShareOfWeight]:
    barrier, parts = threading.Barrier(world_size), {}

    def of_rank(rank: int) -> ShareOfWeight:
        share = _Share(rank, world_size, parts, barrier)
        return format.quantize_share(source, settings, share, CPU)

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(of_rank, range(world_size)))


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "shape",
    [(64, 128), (33, 71), (5, 13), (1, 64), (300, 200), (2, 3)],
    ids=str,
)
def test_parts_are_those_of_the_whole(
    shape: tuple[int, int], world_size: int, double_quant: bool
) -> None:
    weight = torch.randn(shape, dtype=torch.bfloat16)
    settings, source = WeightSettings(64, double_quant), _Source(weight)
    whole = FrozenNF4.quantize(weight, settings)
    shares = _shares(world_size, source, settings, FrozenNF4)
    for name, tensor in whole.tensors().items():
        for rank, (like, parts) in enumerate(shares):
            stored = like.tensors()[name]
            assert (stored.shape, stored.dtype) == (tensor.shape, tensor.dtype)
            if tensor.ndim:
                share = _Share(rank, world_size, {}, threading.Barrier(1))
                assert torch.equal(parts[name], cut(tensor, share)), (name, rank)
            else:
                assert torch.equal(stored, tensor)
    assert shares[0].weight.shape == whole.shape
    # Each reads its part and what its first and last block hold besides.
    assert max(source.read, default=0) <= -(-weight.numel() // world_size) + 2 * 64
    assert sum(source.read) <= weight.numel() + 2 * 64 * world_size


def test_any_format_has_parts() -> None:
    from graftlm.frozen.int8_rows import Int8Rows

    weight, settings = torch.randn(10, 6), WeightSettings()
    whole = Int8Rows.quantize(weight, settings)
    shares = _shares(4, _Source(weight), settings, Int8Rows)
    for name, tensor in whole.tensors().items():
        assert torch.equal(torch.cat([parts[name] for _, parts in shares]), tensor)


def test_a_rank_refuses_nan_in_its_part() -> None:
    weight = torch.randn(64, 64)
    weight[-1, -1] = float("nan")
    share = _Share(1, 2, {}, threading.Barrier(2))
    with pytest.raises(ModelError, match="NaN"):
        FrozenNF4.quantize_share(_Source(weight), WeightSettings(), share, CPU)
