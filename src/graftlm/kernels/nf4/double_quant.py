"""Double quantisation: the block maxima of a 4-bit weight, themselves stored in 8 bits.

QLoRA, https://arxiv.org/abs/2305.14314, section 3 ("Double Quantization") and equation 6. With c
the maxima of the weight's blocks, in groups G of 256:

    store      o    = mean(c)
               s_G  = absmax(c_G - o)
               c8_i = argmin_j | (c_i - o) / s_G - d_j |
    restore    c_i  = d[c8_i] s_G + o

    paper      here
    c2 (c)     absmax, float32 [blocks]
    c1 (s_G)   nested_absmax, float32 [ceil(blocks / 256)]
    o          offset, float32 scalar; c is positive, d is signed, so the mean is taken off first
    d_j        codebook.dynamic_levels
    G          a row of (groups, 256)

Cost per weight at a block size of 64: 8/64 + 32/(64·256) = 0.127 bit, instead of 32/64 = 0.5.

bitsandbytes' arithmetic is followed: a value is first rounded to an even grid of 65,536 points on
[-1, 1], and the level is the one nearest to that point. A group whose maxima all equal the mean has
s_G = 0 and code 0. Rejected: the exact nearest level. It is closer by at most 1.5e-5 s_G, and the
codes would no longer agree.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from graftlm.errors import ModelError
from graftlm.kernels.nf4.codebook import GRID, dynamic_levels, grid_codes
from graftlm.kernels.nf4.weight import NF4Weight

__all__ = ["GROUP_SIZE", "block_scales", "double_quantize", "mean_of"]

GROUP_SIZE = 256
"""Block maxima that share one nested maximum."""


def double_quantize(absmax: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise block maxima to 8 bits.

    Args:
        absmax: float32 ``[blocks]``, finite. The mean is PyTorch's, whose last bit depends on the
            device and, above 32,768 blocks, on the number of threads.

    Returns:
        uint8 ``[blocks]`` codes, float32 ``[groups]`` nested maxima, float32 ``[]`` offset.
    """
    offset = mean_of(absmax)
    blocks = absmax.numel()
    rest = torch.nn.functional.pad(absmax - offset, (0, -blocks % GROUP_SIZE))
    rest = rest.view(-1, GROUP_SIZE)
    nested_absmax = rest.abs().amax(dim=1)
    scaled = (rest * (1.0 / nested_absmax).view(-1, 1)).clamp(-1.0, 1.0)
    # 0 / 0 in a group without spread is NaN, and takes the grid's first point.
    point = ((scaled + 1.0) * 0.5 * (GRID - 1) + 0.5).nan_to_num(0.0).int()
    codes = grid_codes(absmax.device).index_select(0, point.view(-1))[:blocks]
    return codes, nested_absmax, offset


def mean_of(absmax: Tensor) -> Tensor:
    """o, float32 ``[]``; refused where the sum overflows."""
    offset = absmax.mean()
    if not math.isfinite(float(offset)):
        raise ModelError(
            "cannot double-quantise: the sum of the block maxima exceeds float32; expected weights "
            "below about 1e38; check the checkpoint, or set double_quant to false"
        )
    return offset


def block_scales(w4: NF4Weight) -> Tensor:
    """float32 ``[blocks]``: the maximum of each block, restored if it was double-quantised."""
    if w4.nested_absmax is None or w4.offset is None:
        return w4.absmax
    levels = dynamic_levels(w4.device).index_select(0, w4.absmax.int())
    scale = w4.nested_absmax.repeat_interleave(GROUP_SIZE)[: levels.numel()]
    return levels.mul_(scale).add_(w4.offset)
