"""The gradient of a thin factor, against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graftlm.errors import ModelError
from graftlm.kernels.factor_gradient import factor_gradient

pytestmark = pytest.mark.usefixtures("level")

ROUNDING = {torch.bfloat16: 2e-6, torch.float16: 2e-6, torch.float32: 2e-6, torch.float64: 1e-14}


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def compare(rows: int, rank: int, features: int, turned: bool, dtype: torch.dtype) -> None:
    thin, wide = draw(rows, rank, dtype=dtype), draw(rows, features, seed=1, dtype=dtype)
    found = factor_gradient(thin, wide, 0.5, turned)
    wanted = 0.5 * thin.double().T @ wide.double()
    assert found.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert found.shape == ((features, rank) if turned else (rank, features))
    error = (found - (wanted.T if turned else wanted)).norm() / wanted.norm().clamp(min=1e-30)
    assert float(error) <= ROUNDING[dtype]


@settings(derandomize=True, deadline=None, max_examples=80)
@given(
    rows=st.integers(1, 900),
    rank=st.integers(1, 70),
    features=st.integers(1, 700),
    turned=st.booleans(),
    dtype=st.sampled_from(list(ROUNDING)),
)
def test_any_shape(rows: int, rank: int, features: int, turned: bool, dtype: torch.dtype) -> None:
    compare(rows, rank, features, turned, dtype)


def test_a_token_that_dwarfs_the_others_takes_nothing_from_them() -> None:
    thin, wide = (draw(128, n, seed=n, dtype=torch.bfloat16) for n in (16, 96))
    wide[7] *= 2.0**14
    thin[7] = 0.0
    wanted = thin.double().T @ wide.double()
    assert (factor_gradient(thin, wide).double() - wanted).norm() <= 2e-6 * wanted.norm()


@pytest.mark.parametrize("compute", ["float32", "bfloat16", "bfloat16x3"])
def test_one_and_two_threads_agree_to_the_bit(
    compute: str, on_threads: Callable[..., list[Any]]
) -> None:
    thin, wide = draw(700, 16), draw(700, 1344, seed=1)

    def work() -> list[Tensor]:
        return [factor_gradient(thin, wide, 2.0, turned, compute) for turned in (False, True)]

    for one, two in zip(*on_threads(work), strict=True):
        assert torch.equal(one, two)


def test_views_and_empty_batches() -> None:
    thin, wide = draw(6, 2, 3, 8).transpose(0, 1), draw(6, 2, 3, 40, seed=1).transpose(0, 1)
    found = factor_gradient(thin, wide)
    torch.testing.assert_close(found, thin.flatten(0, -2).T @ wide.flatten(0, -2))
    assert torch.equal(factor_gradient(thin[:0], wide[:0]), torch.zeros(8, 40))
    assert factor_gradient(draw(3, 0), draw(3, 4)).shape == (0, 4)
    assert factor_gradient(draw(3, 4), draw(3, 0), turned=True).shape == (0, 4)


def test_the_operator_keeps_to_what_it_declares() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        arguments = (draw(5, 4, dtype=dtype), draw(5, 9, dtype=dtype), 0.5, True, "auto")
        torch.library.opcheck(torch.ops.graftlm.factor_gradient.default, arguments)


def test_factors_that_do_not_belong_together_are_refused() -> None:
    for thin, wide in (
        (draw(4, 2), draw(5, 3)),
        (draw(4, 2), draw(4, 3, dtype=torch.bfloat16)),
        (torch.tensor(1.0), torch.tensor(1.0)),
    ):
        with pytest.raises(ModelError, match="expected the same but for the last dimension"):
            factor_gradient(thin, wide)
