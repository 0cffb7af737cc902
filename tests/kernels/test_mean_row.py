"""The mean row of a head: right, taken once, and taken anew when the head changes."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from graftlm.kernels import mean_row as module
from graftlm.kernels.mean_row import mean_row

TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8]


def draw(dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    w = torch.randn(9001, 37, generator=torch.Generator().manual_seed(0))
    if dtype == torch.int8:
        return (20 * w).to(dtype), torch.rand(9001)
    return w.to(dtype), None


def expected(w: Tensor, scale: Tensor | None) -> Tensor:
    rows = w.double() if scale is None else w.double() * scale[:, None].double()
    return rows.mean(0).float()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_it_is_the_mean(level: str, dtype: torch.dtype) -> None:
    w, scale = draw(dtype)
    largest = w.float().abs().max() if scale is None else (w.float().T * scale).abs().max()
    torch.testing.assert_close(
        mean_row(w, scale), expected(w, scale), rtol=0, atol=1e-6 * float(largest)
    )


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_it_is_taken_once_and_anew_after_a_change(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    taken = []
    run = module._mean_row
    monkeypatch.setattr(module, "_mean_row", lambda *a: taken.append(a) or run(*a))
    w, scale = draw(dtype)
    first = mean_row(w, scale)
    assert mean_row(w, scale) is first
    assert len(taken) == 1
    w[0] = 100
    assert not torch.equal(mean_row(w, scale), first)
    torch.testing.assert_close(mean_row(w, scale), expected(w, scale), rtol=0, atol=1e-4)
    assert len(taken) == 2
    if scale is not None:
        mean_row(w, scale.clone())
        again = mean_row(w, scale)
        assert len(taken) == 4
        assert mean_row(w, scale) is again
        scale[0] += 1
        mean_row(w, scale)
        assert len(taken) == 5


def test_a_weight_that_cannot_tell_of_changes_is_read_each_time() -> None:
    with torch.inference_mode():
        w = torch.ones(5, 3)
        mean_row(w)
        w += 1
        assert mean_row(w).tolist() == [2, 2, 2]
        scale = torch.full((5,), 2.0)
    assert mean_row(torch.ones(5, 3, dtype=torch.int8), scale).tolist() == [2, 2, 2]


def test_another_memory_or_type_is_noticed() -> None:
    layer = torch.nn.Linear(3, 5, bias=False)
    mean_row(layer.weight)
    layer.weight.data = torch.ones(5, 3)
    assert mean_row(layer.weight).tolist() == [1, 1, 1]
    layer.weight.data[0] = 6.125
    layer.half()
    torch.testing.assert_close(mean_row(layer.weight), layer.weight.float().mean(0))


def test_a_weight_that_trains_is_not_held() -> None:
    weight = torch.nn.Parameter(torch.ones(5, 3))
    mean_row(weight)
    gone = weakref.ref(weight)
    del weight
    assert gone() is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_it_is_float32_whatever_the_default_type(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    try:
        mean = mean_row(torch.ones(5, 300, dtype=torch.float32))
    finally:
        torch.set_default_dtype(torch.float32)
    assert mean.dtype == torch.float32
    assert (mean == 1).all()


def test_weights_of_one_memory_are_told_apart() -> None:
    w = torch.arange(12.0).reshape(6, 2)
    assert mean_row(w[:3]).tolist() == [2, 3]
    assert mean_row(w[3:]).tolist() == [8, 9]
    assert mean_row(w).tolist() == [5, 6]
