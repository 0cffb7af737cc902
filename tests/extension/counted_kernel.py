"""A kernel of one's own for one operator on one device: the RMS norm, in plain PyTorch, counted."""

from __future__ import annotations

import torch

from graftlm.extend import implement

CALLS = []


def counted_rms_norm(x, weight, shift, eps):
    """``y = x · r · (w + c)`` with ``r = 1 / √(mean(x²) + ε)``; returns y and r."""
    CALLS.append(tuple(x.shape))
    wide = x.float()
    r = torch.rsqrt(wide.square().mean(-1) + eps)
    return (wide * r[..., None] * (weight.float() + shift)).to(x.dtype), r


def takes(x, *others):
    """Rows of at most 4096 numbers; what is longer is left to the kernel that was there before."""
    return x.shape[-1] <= 4096


def install():
    """Let the kernel run from now on; returns what `graftlm.extend.withdraw` takes."""
    return implement("rms_norm", "cpu", counted_rms_norm, accepts=takes, label="counted")
