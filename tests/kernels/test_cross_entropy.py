"""The native linear cross-entropy, on every level this CPU has, against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from graftlm.frozen.int8_rows import Int8Rows
from graftlm.kernels import cross_entropy, native
from graftlm.kernels.cross_entropy import Head
from graftlm.kernels.reference import cross_entropy as reference
from tests.oracles.products import rounds_to_int16

pytestmark = pytest.mark.skipif(native.extension() is None, reason="no native kernels here")

SHAPES = [(1, 1, 1), (7, 30, 5), (65, 4097, 32), (70, 9000, 33), (530, 8300, 64)]


def confident(
    n: int, vocabulary: int, dim: int, dtype: torch.dtype = torch.bfloat16, peak: float = 30.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states that point at a row each, as a trained model's do: most p are negligible."""
    g = torch.Generator().manual_seed(n + vocabulary + dim)
    weight = torch.randn(vocabulary, dim, generator=g) + 0.3
    likely = torch.randint(0, vocabulary, (n,), generator=g)
    hidden = weight[likely] * (peak / dim) + torch.randn(n, dim, generator=g) / dim**0.5
    wrong = torch.rand(n, generator=g) < 0.3
    targets = torch.where(wrong, torch.randint(0, vocabulary, (n,), generator=g), likely)
    return hidden, weight.to(dtype), targets


def truth(hidden: Tensor, head: Head, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(z, ∂z/∂a), both (N, V), in float64."""
    z = hidden.double() @ head.weight.double().T
    z = (z + (0 if head.bias is None else head.bias.double())) * head.scale
    if head.softcap is None:
        return z, torch.full_like(z, head.scale)
    z = head.softcap * torch.tanh(z / head.softcap)
    return z, head.scale * (1 - (z / head.softcap) ** 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_is_as_exact_as_float32(level: str, shape: tuple[int, int, int], dtype) -> None:
    hidden, weight, targets = confident(*shape, dtype=dtype)
    walk = cross_entropy.forward(hidden, Head(weight), targets, want_grad=False)
    z = hidden.double() @ weight.double().T
    expected = F.cross_entropy(z, targets, reduction="none")
    naive = F.cross_entropy(hidden @ weight.float().T, targets, reduction="none")
    # AMX keeps 16 bits of each factor
    rounding = z.abs().max() * (2**-16 if level == "amx" else 2**-22)
    error, naive_error = ((x - expected).abs().max() for x in (walk.loss.double(), naive.double()))
    assert error <= naive_error + rounding
    assert walk.grad_hidden is None


@pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [{}, {"softcap": 25.0}, {"scale": 0.7, "bias": True}, {"softcap": 20.0, "bias": True}],
)
@pytest.mark.parametrize("tolerance", [1e-4, 1e-5])
def test_gradient_is_the_kept_rows_and_the_mean_row_for_the_rest(
    level: str, options: dict, tolerance: float, hidden_dtype: torch.dtype
) -> None:
    hidden, weight, targets = confident(70, 9000, 64, peak=50.0)
    hidden = hidden.to(hidden_dtype)
    bias = torch.linspace(-1, 1, 9000) if options.get("bias") else None
    head = Head(weight, bias, options.get("softcap"), options.get("scale", 1.0))
    walk = cross_entropy.forward(hidden, head, targets, tolerance=tolerance)
    z, slope = truth(hidden, head, targets)
    p = z.softmax(1)
    kept = p > tolerance
    dropped = (p * ~kept).sum(1)
    sparse = (dropped <= cross_entropy.MAX_DROPPED) & (walk.dropped > 0)
    assert sparse.sum() >= 5
    w = weight.double()
    hit = slope.gather(1, targets[:, None])
    expected = (p * slope * kept) @ w + dropped[:, None] * head.scale * w.mean(0) - hit * w[targets]
    exact = (p * slope) @ w - hit * w[targets]
    assert walk.grad_hidden is not None
    got = walk.grad_hidden.double()
    scale = w.norm(dim=1).max() * head.scale
    # an entry at the tolerance itself may fall on either side
    close = 3e-4 * scale + 2 * tolerance * scale
    assert ((got - expected)[sparse].norm(dim=1) <= close).all()
    assert ((got - exact)[~sparse].norm(dim=1) <= close).all()
    torch.testing.assert_close(
        walk.dropped[sparse].double(), dropped[sparse], rtol=0.02, atol=2 * tolerance + 2e-6
    )
    # the bound that the statistics promise
    error = (got - exact).norm(dim=1)
    assert (error <= 2 * scale * walk.dropped + close).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, {"softcap": 25.0}, {"scale": 0.7, "bias": True}])
def test_rows_in_8_bits_are_the_weight_they_stand_for(
    level: str, shape: tuple[int, int, int], options: dict, dtype: torch.dtype
) -> None:
    hidden, weight, targets = confident(*shape)
    hidden = hidden.to(dtype)
    hidden[::7] = 0.01 * hidden[::7]  # flat: computed densely
    rows = Int8Rows.quantize(weight)
    bias = torch.linspace(-1, 1, shape[1]) if options.get("bias") else None
    rest = (bias, options.get("softcap"), options.get("scale", 1.0))
    stands_for = Head(rows.codes.float() * rows.row_scale[:, None], *rest)
    walk = cross_entropy.forward(hidden, Head(rows.codes, *rest, rows.row_scale), targets)
    exact = reference.forward(hidden.double(), stands_for, targets, 0.0, True)
    rounded = rounds_to_int16(dtype)
    torch.testing.assert_close(
        walk.loss.double(), exact.loss, rtol=3e-5, atol=2e-3 if rounded else 3e-4
    )
    close = 2e-3 * stands_for.weight.norm(dim=1).max()
    assert ((walk.grad_hidden.double() - exact.grad_hidden).norm(dim=1) <= close).all()
    again = cross_entropy.forward(
        hidden, Head(rows.codes, *rest, rows.row_scale), targets, tolerance=0.0
    )
    torch.testing.assert_close(again.loss.double(), exact.loss, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(again.grad_hidden.double(), exact.grad_hidden, rtol=0, atol=1e-4)


def test_label_smoothing_equals_the_reference(level: str) -> None:
    hidden, weight, targets = confident(70, 9000, 64)
    head = Head(weight, torch.linspace(-1, 1, 9000), None, 0.8)
    walk = cross_entropy.forward(hidden, head, targets, 0.1, 1e-8)
    exact = reference.forward(hidden.double(), head, targets, 0.1, True)
    torch.testing.assert_close(walk.loss.double(), exact.loss, rtol=3e-5, atol=3e-4)
    torch.testing.assert_close(walk.grad_hidden.double(), exact.grad_hidden, rtol=0, atol=2e-3)


def test_any_number_of_threads_gives_the_same_bits(
    level: str, on_threads: Callable[..., list[Any]]
) -> None:
    hidden, weight, targets = confident(530, 13000, 64)
    walks = on_threads(
        lambda: cross_entropy.forward(hidden, Head(weight), targets, tolerance=1e-4), (1, 2, 3)
    )
    assert walks[0].dense == 0
    for other in walks[1:]:
        assert torch.equal(walks[0].loss, other.loss)
        assert torch.equal(walks[0].grad_hidden, other.grad_hidden)
        assert torch.equal(walks[0].dropped, other.dropped)
        assert walks[0].kept == other.kept


def test_a_flat_distribution_is_computed_densely(level: str) -> None:
    hidden, weight, targets = confident(9, 9000, 32)
    hidden[::2] = 0.01 * hidden[::2]
    walk = cross_entropy.forward(hidden, Head(weight), targets)
    exact = reference.forward(hidden.double(), Head(weight), targets, 0.0, True)
    assert 5 <= walk.dense < 9
    assert (walk.dropped[::2] == 0).all()
    torch.testing.assert_close(
        walk.grad_hidden[::2].double(), exact.grad_hidden[::2], rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("beside", [1.0, 0.5, 0.1])
def test_a_position_is_not_changed_by_its_neighbours(level: str, beside: float) -> None:
    hidden, weight, targets = confident(100, 13000, 64)
    own = 0.6 * hidden[:50]  # some keep less than a quarter of their entries, some more
    alone = cross_entropy.forward(own, Head(weight), targets[:50])
    together = cross_entropy.forward(torch.cat([own, beside * hidden[50:]]), Head(weight), targets)
    assert 3 < alone.dense < 47
    assert torch.equal(together.dropped[:50], alone.dropped)
    sparse = alone.dropped > 0
    assert torch.equal(together.grad_hidden[:50][sparse], alone.grad_hidden[sparse])
    torch.testing.assert_close(together.grad_hidden[:50], alone.grad_hidden, rtol=0, atol=1e-4)


def test_a_position_is_the_same_by_itself(level: str) -> None:
    hidden, weight, targets = confident(100, 9000, 64)
    together = cross_entropy.forward(hidden, Head(weight), targets)
    alone = cross_entropy.forward(hidden[83:84], Head(weight), targets[83:84])
    assert torch.equal(together.grad_hidden[83:84], alone.grad_hidden)


def test_not_a_number_is_not_hidden(level: str) -> None:
    hidden, weight, targets = confident(5, 300, 32)
    hidden[3, 7] = torch.nan
    walk = cross_entropy.forward(hidden, Head(weight), targets)
    assert walk.loss.isnan().tolist() == [False, False, False, True, False]
    assert walk.grad_hidden[3].isnan().all()
    assert walk.grad_hidden[:3].isfinite().all()


def test_zero_tolerance_asks_for_the_reference(level: str) -> None:
    hidden, weight, targets = confident(5, 300, 32)
    walk = cross_entropy.forward(hidden, Head(weight), targets, tolerance=0.0)
    exact = reference.forward(hidden, Head(weight), targets, 0.0, True)
    assert torch.equal(walk.grad_hidden, exact.grad_hidden)
