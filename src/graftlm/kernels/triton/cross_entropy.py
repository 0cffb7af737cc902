"""Linear cross-entropy with its gradient for the hidden states, logits never stored.

    z = softcap(scale · (h Wᵀ + b)),     loss = lse(z) − z_t
    dh = Σ_v p_v z'_v w_v − z'_t w_t,     p = softmax(z)

One walk over the vocabulary, a tile of rows of W at a time (arXiv 2411.09009; the online softmax of
arXiv 1805.02867). Of a tile,

    `_logits`    writes z                                                    N × tile numbers
    `_absorb`    raises the running maximum m and adds Σ exp(z − m) to the total; leaves
                 exp(z − m) · z' in place of z, and the factor exp(m_old − m) by which what came
                 before shrinks
    `_pull`      G = shrink · G + (exp(z − m) · z') W

so that at the end dh = G / total − z'_t w_t. Nothing is computed twice and the gradient is exact:
no entry of the softmax is left out. Products are tiles of a matrix product in the wider type of h
and W, and sums are float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from graftlm.kernels.reference.cross_entropy import Head
from graftlm.kernels.triton.launch import cdiv, on_device_of, power_of_two, precision

__all__ = ["cross_entropy", "tile_rows"]

TILE_ELEMENTS = 1 << 24
"""Logits of a tile: 64 MB."""
ROWS, WORDS, ALONG = 128, 128, 32
"""Sides of the tiles of the products: positions, rows of W, and what is summed over."""


@triton.jit
def _logits(
    h, weight, row_scale, bias, z, first, rows, words, width, scale, cap,
    SCALED: tl.constexpr, BIAS: tl.constexpr, CAPPED: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, WORDS: tl.constexpr, ALONG: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    word = tl.program_id(1).to(tl.int64) * WORDS + tl.arange(0, WORDS)
    total = tl.zeros([ROWS, WORDS], tl.float32)
    for start in range(0, width, ALONG):
        k = start + tl.arange(0, ALONG)
        known = (row < rows)[:, None] & (k < width)[None, :]
        left = tl.load(h + row[:, None] * width + k[None, :], mask=known, other=0.0)
        known = (k < width)[:, None] & (word < words)[None, :]
        place = weight + (first + word)[None, :] * width + k[:, None]
        right = tl.load(place, mask=known, other=0.0)
        # Codes of 8 bits are exact in 16.
        total = tl.dot(left.to(WIDE), right.to(WIDE), total, input_precision=PRECISION)
    if SCALED:
        total *= tl.load(row_scale + first + word, mask=word < words, other=0.0)[None, :]
    if BIAS:
        total += tl.load(bias + first + word, mask=word < words, other=0.0).to(tl.float32)[None, :]
    total *= scale
    if CAPPED:
        total = cap * (1.0 - 2.0 / (1.0 + tl.exp(2.0 * total / cap)))
    known = (row < rows)[:, None] & (word < words)[None, :]
    tl.store(z + row[:, None] * words + word[None, :], total, mask=known)


@triton.jit
def _absorb(
    z, targets, peak, total, hit, shrink, first, words, scale, cap,
    CAPPED: tl.constexpr, WANTED: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    z += row * words
    before = tl.load(peak + row)
    highest = tl.full([WORDS], float("-inf"), tl.float32)
    missing = tl.zeros([WORDS], tl.int32)
    for start in range(0, words, WORDS):
        word = start + tl.arange(0, WORDS)
        value = tl.load(z + word, mask=word < words, other=float("-inf"))
        highest = tl.maximum(highest, value)
        missing |= (value != value).to(tl.int32)
    now = tl.maximum(before, tl.max(highest, 0))
    now = tl.where(tl.max(missing, 0) > 0, float("nan"), now)  # `max` passes over NaN
    target = tl.load(targets + row) - first
    if (target >= 0) & (target < words):
        tl.store(hit + row, tl.load(z + target))
    sums = tl.zeros([WORDS], tl.float32)
    for start in range(0, words, WORDS):
        word = start + tl.arange(0, WORDS)
        value = tl.load(z + word, mask=word < words, other=float("-inf"))
        e = tl.exp(value - now)
        sums += e
        if WANTED:
            if CAPPED:
                share = tl.where(word < words, value, 0.0) / cap
                e = e * scale * (1.0 - share * share)
            else:
                e = e * scale
            tl.store(z + word, e, mask=word < words)
    factor = tl.exp(before - now)
    tl.store(total + row, tl.load(total + row) * factor + tl.sum(sums, 0))
    tl.store(peak + row, now)
    tl.store(shrink + row, factor)


@triton.jit
def _pull(
    z, weight, row_scale, shrink, grad, first, rows, words, width,
    SCALED: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, ACROSS: tl.constexpr, ALONG: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * ACROSS + tl.arange(0, ACROSS)
    known = (row < rows)[:, None] & (column < width)[None, :]
    place = grad + row[:, None] * width + column[None, :]
    total = tl.load(place, mask=known, other=0.0)
    total *= tl.load(shrink + row, mask=row < rows, other=0.0)[:, None]
    for start in range(0, words, ALONG):
        word = start + tl.arange(0, ALONG)
        inside = (row < rows)[:, None] & (word < words)[None, :]
        left = tl.load(z + row[:, None] * words + word[None, :], mask=inside, other=0.0)
        inside = (word < words)[:, None] & (column < width)[None, :]
        at = weight + (first + word).to(tl.int64)[:, None] * width + column[None, :]
        right = tl.load(at, mask=inside, other=0.0)
        if SCALED:
            left *= tl.load(row_scale + first + word, mask=word < words, other=0.0)[None, :]
        total = tl.dot(left.to(WIDE), right.to(WIDE), total, input_precision=PRECISION)
    tl.store(place, total, mask=known)


_NAMES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
}


def tile_rows(positions: int, vocabulary: int) -> int:
    """Rows of W in a tile."""
    return min(vocabulary, max(TILE_ELEMENTS // max(positions, 1) // WORDS * WORDS, 8 * WORDS))


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    row_scale: Tensor | None,
    bias: Tensor | None,
    mean_row: Tensor | None,
    targets: Tensor,
    scale: float,
    softcap: float,
    label_smoothing: float,
    tolerance: float,
    max_dropped: float,
    want_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses and gradients; arguments and results as of the operator ``cross_entropy``."""
    h, weight, targets = hidden.contiguous(), weight.detach().contiguous(), targets.contiguous()
    row_scale = None if row_scale is None else row_scale.contiguous()
    bias = None if bias is None else bias.detach().contiguous()
    (positions, width), vocabulary = h.shape, weight.shape[0]
    peak = h.new_full((positions,), float("-inf"), dtype=torch.float32)
    total, hit, shrink, dropped = (torch.zeros_like(peak) for _ in range(4))
    grad = h.new_zeros((positions, width) if want_grad else 0, dtype=torch.float32)
    step = tile_rows(positions, vocabulary)
    z = h.new_empty(positions * step, dtype=torch.float32)
    shared: dict[str, Any] = {"PRECISION": precision(), "num_stages": 3, "num_warps": 8}
    for first in range(0, vocabulary if positions else 0, step):
        words = min(step, vocabulary - first)
        _walk(
            (h, weight, h if row_scale is None else row_scale, h if bias is None else bias),
            (z, targets, peak, total, hit, shrink, grad),
            (first, words, scale, softcap),
            (row_scale is not None, bias is not None, softcap > 0, want_grad),
            shared,
        )
    lse = peak + total.log()
    if want_grad:
        head = Head(weight, bias, softcap or None, scale, row_scale)
        grad.div_(total[:, None])
        grad.sub_(head.rows(targets, torch.float32).mul_(_slope(hit, scale, softcap)))
    counts = torch.full((2,), positions, dtype=torch.int64, device=h.device)
    counts[0] *= vocabulary
    return lse - hit, lse, grad, dropped, counts


def _walk(
    factors: tuple[Tensor, ...],
    sums: tuple[Tensor, ...],
    tile: tuple[int, int, float, float],
    kinds: tuple[bool, bool, bool, bool],
    shared: dict[str, Any],
) -> None:
    """One tile of the vocabulary."""
    h, weight, row_scale, bias = factors
    z, targets, peak, total, hit, shrink, grad = sums
    first, words, scale, cap = tile
    scaled, biased, capped, wanted = kinds
    rows, width = h.shape
    wide = _NAMES[h.dtype if scaled else torch.promote_types(h.dtype, weight.dtype)]
    with on_device_of(h):
        _logits[(cdiv(rows, ROWS), cdiv(words, WORDS))](
            h, weight, row_scale, bias, z, first, rows, words, width, scale, cap,
            SCALED=scaled, BIAS=biased, CAPPED=capped, WIDE=wide,
            ROWS=ROWS, WORDS=WORDS, ALONG=ALONG, **shared,
        )  # fmt: skip
        _absorb[(rows,)](
            z, targets, peak, total, hit, shrink, first, words, scale, cap,
            CAPPED=capped, WANTED=wanted, WORDS=min(4096, power_of_two(words)),
        )  # fmt: skip
        if wanted:
            _pull[(cdiv(rows, ROWS), cdiv(width, WORDS))](
                z, weight, row_scale, shrink, grad, first, rows, words, width,
                SCALED=scaled, WIDE=wide,
                ROWS=ROWS, ACROSS=WORDS, ALONG=ALONG, **shared,
            )  # fmt: skip


def _slope(z: Tensor, scale: float, cap: float) -> Tensor:
    """(N, 1): ∂z / ∂(h Wᵀ) at a logit."""
    slope = torch.full_like(z, scale) if not cap else (1 - (z / cap).square_()).mul_(scale)
    return slope[:, None]
