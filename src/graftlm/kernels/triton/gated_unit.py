"""The gated unit of a feed-forward layer and its gradient (arXiv 2002.05202), in one pass.

y  = g · σ(t) · u,     t = k (g + a g³)
du = dy · g · σ(t),    dg = dy · u · (σ(t) + g · σ(t) (1 − σ(t)) · k (1 + 3 a g²))
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from graftlm.kernels.triton.launch import cdiv, on_device_of

__all__ = ["gated_unit", "gated_unit_backward"]

ELEMENTS = 1024


@triton.jit
def _gated(g, u, y, k, a, numel, ELEMENTS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    gate = tl.load(g + at, mask=at < numel, other=0.0).to(tl.float32)
    value = tl.load(u + at, mask=at < numel, other=0.0).to(tl.float32)
    s = 1.0 / (1.0 + tl.exp(-k * (gate + a * gate * gate * gate)))
    tl.store(y + at, (gate * s * value).to(y.dtype.element_ty), mask=at < numel)


@triton.jit
def _gradient(dy, g, u, dg, du, k, a, numel, ELEMENTS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    known = at < numel
    d = tl.load(dy + at, mask=known, other=0.0).to(tl.float32)
    gate = tl.load(g + at, mask=known, other=0.0).to(tl.float32)
    value = tl.load(u + at, mask=known, other=0.0).to(tl.float32)
    s = 1.0 / (1.0 + tl.exp(-k * (gate + a * gate * gate * gate)))
    slope = s + gate * s * (1.0 - s) * k * (1.0 + 3.0 * a * gate * gate)
    tl.store(dg + at, (d * value * slope).to(dg.dtype.element_ty), mask=known)
    tl.store(du + at, (d * gate * s).to(du.dtype.element_ty), mask=known)


def gated_unit(g: Tensor, u: Tensor, k: float, a: float) -> Tensor:
    """``act(g) · u`` in their type."""
    g, u = g.contiguous(), u.contiguous()
    y = torch.empty_like(g)
    if g.numel():
        with on_device_of(g):
            _gated[(cdiv(g.numel(), ELEMENTS),)](g, u, y, k, a, g.numel(), ELEMENTS=ELEMENTS)
    return y


def gated_unit_backward(
    dy: Tensor, g: Tensor, u: Tensor, k: float, a: float
) -> tuple[Tensor, Tensor]:
    """The gradients of ``g`` and ``u``."""
    dy, g, u = dy.contiguous(), g.contiguous(), u.contiguous()
    dg, du = torch.empty_like(g), torch.empty_like(u)
    if g.numel():
        grid = (cdiv(g.numel(), ELEMENTS),)
        with on_device_of(g):
            _gradient[grid](dy, g, u, dg, du, k, a, g.numel(), ELEMENTS=ELEMENTS)
    return dg, du
