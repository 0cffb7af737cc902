"""A storage format of one's own: 4 bits, affine, with a minimum and a step for each block."""

from __future__ import annotations

import torch

from graftlm.extend import FrozenWeight, register_format


@register_format
class Affine4(FrozenWeight):
    """``w = low + step · code``, with code in 0 … 15, in blocks of ``block_size``."""

    format = "affine4"
    scales = frozenset({"low", "step"})

    def __init__(self, codes, low, step, shape, dtype):
        self.codes, self.low, self.step = codes, low, step
        self.shape, self.dtype = shape, dtype

    @classmethod
    def quantize(cls, weight, settings):
        blocks = weight.float().reshape(-1, settings.block_size)
        low, high = blocks.aminmax(dim=1, keepdim=True)
        step = ((high - low) / 15).clamp_min(1e-12)
        codes = ((blocks - low) / step).round().to(torch.uint8).view(-1)
        packed = (codes[::2] << 4) | codes[1::2]
        return cls(packed, low, step, tuple(weight.shape), weight.dtype)

    def dequantize(self, dtype=None):
        codes = torch.stack([self.codes >> 4, self.codes & 15], dim=1).view(len(self.low), -1)
        weight = self.low + self.step * codes
        return weight.reshape(self.shape).to(dtype or self.dtype)

    def tensors(self):
        return {"codes": self.codes, "low": self.low, "step": self.step}

    def with_tensors(self, tensors):
        parts = (tensors["codes"], tensors["low"], tensors["step"])
        return type(self)(*parts, self.shape, self.dtype)
