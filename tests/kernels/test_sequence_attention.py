"""Attention of sequences end to end: against PyTorch's with a mask, and as a card would run it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from graftlm.errors import ModelError
from graftlm.kernels import operators
from graftlm.kernels.products import draw
from graftlm.kernels.sequence_attention import sequence_attention
from graftlm.kernels.triton import sequence_attention as card

BORDERS = [0, 1, 40, 73, 74, 90]


def tensor(borders: list[int]) -> Tensor:
    return torch.tensor(borders, dtype=torch.int32)


HERE = tensor(BORDERS)
FORWARD, BACKWARD = (operators()[f"sequence_attention{end}"] for end in ("", "_backward"))


def masked(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int) -> Tensor:
    """PyTorch's attention with the mask that the borders stand for."""
    place = torch.arange(BORDERS[-1])
    seen = torch.zeros(len(place), len(place), dtype=torch.bool)
    for start, stop in itertools.pairwise(BORDERS):
        back = place[start:stop, None] - place[start:stop]
        seen[start:stop, start:stop] = (back >= 0) & (back < (window or len(place)))
    return F.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=True)


@pytest.mark.parametrize("window", [0, 1, 16, 90])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_attention_with_the_mask_that_the_borders_stand_for(
    window: int, groups: int, dtype: torch.dtype
) -> None:
    shapes = ((1, 4, 90, 16), (1, groups, 90, 16), (1, groups, 90, 16))
    inputs = [draw(*s, seed=i, dtype=dtype).requires_grad_() for i, s in enumerate(shapes)]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    dy = draw(1, 4, 90, 16, seed=5, dtype=dtype)
    ours = sequence_attention(*inputs, 0.3, tensor(BORDERS), window)
    truth = masked(*wide, 0.3, window)
    slopes = torch.autograd.grad(ours, inputs, dy)
    wanted = torch.autograd.grad(truth, wide, dy.double())
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    for found, exact in zip((ours, *slopes), (truth, *wanted), strict=True):
        assert found.dtype == dtype
        assert (found.double() - exact).norm() <= bound * (exact.norm() + 1)


def test_it_passes_opcheck() -> None:
    q, k = torch.randn(1, 4, 9, 8, requires_grad=True), torch.randn(1, 2, 9, 8)
    for window in (0, 3):
        torch.library.opcheck(
            torch.ops.graftlm.sequence_attention, (q, k, k, 0.5, tensor([0, 4, 9]), window)
        )


@pytest.mark.parametrize("borders", [[], [0], [0, 4], [1, 9], [0, 5, 5, 9], [0, 6, 4, 9]])
def test_borders_of_other_positions_are_refused(borders: list[int]) -> None:
    q = torch.randn(1, 2, 9, 8)
    with pytest.raises(ModelError, match="borders 0 < … < T"):
        sequence_attention(q, q, q, 0.5, tensor(borders))


@pytest.fixture
def a_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A device of Ampere's kind, as far as the kernel asks, and fake tensors on it."""
    card._places.cache_clear()
    monkeypatch.setattr(card, "_has_flash_attention", lambda device: True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield
    card._places.cache_clear()


def on_the_card(dtype: torch.dtype = torch.bfloat16, size: int = 64) -> list[Tensor]:
    """Queries, keys and values as projections leave them."""
    shapes = ((1, 90, 8, size), (1, 90, 2, size), (1, 90, 2, size))
    return [torch.empty(s, dtype=dtype, device="cuda:0").transpose(1, 2) for s in shapes]


@pytest.mark.parametrize("window", [0, 16])
def test_a_card_runs_flash_attention_of_pytorch(window: int, a_card: None) -> None:
    """PyTorch's own rules for shapes and devices, without values: no card is needed."""
    q, k, v = on_the_card()
    borders = HERE
    assert FORWARD._on("cuda", q, k, v, 0.125, borders, window).label == "PyTorch"  # type: ignore[union-attr]
    y, lse = card.sequence_attention(q, k, v, 0.125, borders, window)
    assert (y.shape, y.dtype, y.device.type) == (q.shape, q.dtype, "cuda")
    assert (lse.shape, lse.dtype) == ((1, 8, 90), torch.float32)
    like = FORWARD.fake(q)
    assert [t.stride()[1:] for t in (y, lse)] == [t.stride()[1:] for t in like]
    arguments = (torch.empty_like(y), q, k, v, y, lse, 0.125, borders, window)
    assert BACKWARD._on("cuda", *arguments).label == "PyTorch"  # type: ignore[union-attr]
    slopes = card.sequence_attention_backward(*arguments)
    assert [(t.shape, t.stride()[1:], t.dtype) for t in slopes] == [
        (t.shape, t.stride()[1:], t.dtype) for t in (q, k, v)
    ]
    places, longest = card._places(tuple(BORDERS), q.device)
    assert (places.shape, places.dtype, places.device.type) == ((6,), torch.int32, "cuda")
    assert longest == 39


def test_what_flash_attention_does_not_take_has_no_kernel(
    a_card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert card.takes(*on_the_card())
    assert not card.takes(*on_the_card(torch.float32))
    assert not card.takes(*on_the_card(size=264))
    assert not card.takes(*on_the_card(size=36))
    assert not card.takes(*(torch.empty(1, 2, 9, 64, dtype=torch.bfloat16) for _ in range(3)))
    monkeypatch.undo()  # an older card
    card._has_flash_attention.cache_clear()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    try:
        assert not card.takes(*on_the_card())
    finally:
        card._has_flash_attention.cache_clear()
