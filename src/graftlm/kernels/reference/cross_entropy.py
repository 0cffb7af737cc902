"""Linear cross-entropy in plain PyTorch: exact, on any device, logits never stored.

Both walks go over the head in tiles of rows. The forward walk keeps a running maximum m, the sum
s = Σ exp(z − m) and, where wanted, G = Σ exp(z − m) · w, rescaled whenever m rises (the online
softmax of arXiv 1805.02867 and 2205.14135), so one walk yields the loss *and* its gradient with
respect to the hidden states. The backward walk knows the log-sum-exp and forms every gradient. The
equations stand in `graftlm.training.linear_cross_entropy`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = [
    "Gradients",
    "Head",
    "Walk",
    "backward",
    "compute_dtype",
    "forward",
    "gradient_at",
    "tile_rows",
]

TILE_ELEMENTS = 1 << 22
"""Logits in memory at a time: 16 MB in float32, about the size of a last-level cache."""


@dataclasses.dataclass(frozen=True)
class Head:
    """The output layer: ``z = softcap(scale · (h Wᵀ + b))``.

    Attributes:
        weight: (V, D), any floating-point type, or int8 with ``row_scale``; read a tile at a time.
        bias: (V,) or ``None``.
        softcap: ``z → c · tanh(z / c)`` where set (Gemma 2).
        scale: multiplies the logits before the cap (Cohere, Granite).
        row_scale: (V,) float32: row r of W is ``row_scale[r]`` times what ``weight`` holds.
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0
    row_scale: Tensor | None = None

    def rows(self, index: slice | Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows of W in ``dtype``."""
        if self.row_scale is None:
            return self.weight[index].to(dtype)
        return self.weight[index] * self.row_scale[index].unsqueeze(1).to(dtype)

    def tiles(self, step: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Yield ``(rows, W[rows])`` in ``dtype``."""
        for start in range(0, self.weight.shape[0], step):
            rows = slice(start, min(start + step, self.weight.shape[0]))
            yield rows, self.rows(rows, dtype)

    def logits(self, hidden: Tensor, tile: Tensor, rows: slice) -> Tensor:
        """(N, D), (T, D) → (N, T)."""
        return self.finished(hidden @ tile.T, rows)

    def finished(self, z: Tensor, rows: slice) -> Tensor:
        """The logits from their products, in place."""
        if self.bias is not None:
            z += self.bias[rows].to(z.dtype)
        if self.scale != 1.0:
            z *= self.scale
        return z if self.softcap is None else z.div_(self.softcap).tanh_().mul_(self.softcap)

    def slope(self, z: Tensor) -> Tensor | float:
        """``∂z / ∂(h Wᵀ)``, from the finished logits."""
        if self.softcap is None:
            return self.scale
        return (1 - (z / self.softcap) ** 2) * self.scale


@dataclasses.dataclass(frozen=True)
class Walk:
    """The result of one pass over the vocabulary, a row per position.

    Attributes:
        loss: (N,).
        lse: (N,) log Σ exp(z).
        grad_hidden: (N, D), or ``None`` if it was not requested.
        dropped: (N,) probability left out of ``grad_hidden``; exact, zero for an exact gradient.
        counts: (2,) int64: `kept` and `dense`.
    """

    loss: Tensor
    lse: Tensor
    grad_hidden: Tensor | None
    dropped: Tensor
    counts: Tensor

    @property
    def kept(self) -> int:
        """Number of softmax entries used for ``grad_hidden``, over all positions."""
        return int(self.counts[0])

    @property
    def dense(self) -> int:
        """Positions whose gradient needed the exact product."""
        return int(self.counts[1])


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Gradients of the summed loss; ``None`` if not requested."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """The type of products: float32, or float64 for float64 hidden states."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def tile_rows(positions: int) -> int:
    """Vocabulary rows a tile: about `TILE_ELEMENTS` logits, within reason at both ends."""
    return min(max(TILE_ELEMENTS // max(positions, 1) // 256 * 256, 256), 8192)


def forward(
    hidden: Tensor, head: Head, targets: Tensor, label_smoothing: float, want_grad: bool
) -> Walk:
    """One walk: losses, log-sum-exps and, where wanted, the gradient of each row of ``hidden``."""
    dtype, (positions, dim) = compute_dtype(hidden), hidden.shape
    vocabulary = head.weight.shape[0]
    h = hidden.to(dtype)
    peak = h.new_full((positions, 1), -torch.inf)
    total, logit_sum, hit = (h.new_zeros(positions, 1) for _ in range(3))
    pulled, uniform = (h.new_zeros(positions, dim) if want_grad else None for _ in range(2))
    for rows, tile in head.tiles(tile_rows(positions), dtype):
        z = head.logits(h, tile, rows)
        hit += _entries_at(z, targets, rows)
        if label_smoothing:
            logit_sum += z.sum(1, keepdim=True)
        higher = torch.maximum(peak, z.amax(1, keepdim=True))
        shrink, peak = (peak - higher).exp_(), higher
        slope = head.slope(z) if want_grad else 1.0
        e = z.sub_(peak).exp_()
        total.mul_(shrink).add_(e.sum(1, keepdim=True))
        if pulled is not None and uniform is not None:
            pulled.mul_(shrink).addmm_(e.mul_(slope), tile)
            if label_smoothing:
                uniform += slope @ tile if isinstance(slope, Tensor) else slope * tile.sum(0)
    lse = peak + total.log()
    loss = lse - (1 - label_smoothing) * hit - label_smoothing / vocabulary * logit_sum
    if pulled is not None and uniform is not None:
        pulled.div_(total).sub_(uniform, alpha=label_smoothing / vocabulary)
        push = (1 - label_smoothing) * head.slope(hit)
        pulled -= push * head.rows(targets, dtype)
    return Walk(
        loss=loss.squeeze(1),
        lse=lse.squeeze(1),
        grad_hidden=pulled,
        dropped=torch.zeros_like(lse.squeeze(1)),
        counts=torch.tensor([positions * vocabulary, positions]).to(h.device, non_blocking=True),
    )


def backward(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    lse: Tensor,
    label_smoothing: float,
    wanted: tuple[bool, bool, bool],
) -> Gradients:
    """The second walk, for a trainable head: gradients of Σ loss for (hidden, weight, bias)."""
    dtype = compute_dtype(hidden)
    h, lse = hidden.to(dtype), lse.unsqueeze(1)
    d_hidden = torch.zeros_like(h) if wanted[0] else None
    d_weight = torch.empty_like(head.weight) if wanted[1] else None
    d_bias = torch.empty_like(head.bias) if wanted[2] and head.bias is not None else None
    for rows, tile in head.tiles(tile_rows(hidden.shape[0]), dtype):
        dz = gradient_at(head, head.logits(h, tile, rows), targets, rows, lse, label_smoothing)
        if d_hidden is not None:
            d_hidden.addmm_(dz, tile)
        if d_weight is not None:
            d_weight[rows] = dz.T @ h
        if d_bias is not None:
            d_bias[rows] = dz.sum(0)
    return Gradients(d_hidden, d_weight, d_bias)


def gradient_at(
    head: Head, z: Tensor, targets: Tensor, rows: slice, lse: Tensor, label_smoothing: float
) -> Tensor:
    """(N, T) ``∂L / ∂(h Wᵀ)`` of a tile from its logits, in place; ``lse`` is (N, 1)."""
    slope = head.slope(z)
    dz = z.sub_(lse).exp_().sub_(label_smoothing / head.weight.shape[0])
    inside, column = _inside(targets, rows)
    dz.scatter_add_(1, column, inside.to(dz.dtype).mul_(label_smoothing - 1))
    return dz.mul_(slope)


def _inside(targets: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """(N, 1): whether a position's target lies in this tile; and its column, or another one.

    To list the positions whose targets do, the processor would have to wait for the device.
    """
    column = targets[:, None] - rows.start
    size = rows.stop - rows.start
    return (column >= 0) & (column < size), column.clamp(0, size - 1)


def _entries_at(z: Tensor, targets: Tensor, rows: slice) -> Tensor:
    """(N, 1): the target's logit where it lies in this tile, else zero."""
    inside, column = _inside(targets, rows)
    return z.gather(1, column).masked_fill_(~inside, 0.0)
