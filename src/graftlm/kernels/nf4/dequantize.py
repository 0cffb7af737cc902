"""From 4 bits back to a dense weight.

QLoRA, https://arxiv.org/abs/2305.14314, equations 2 and 6:

    W_i = q[code_i] · c_block(i)

    paper   here
    q       codebook.nf4_pairs, a byte at a time
    c       scales, restored from 8 bits by double_quant.block_scales
    W       out

The product is float32 and is rounded once, to the type asked for. Rejected: levels rounded to
bfloat16 first (two roundings; it is what a 16-bit lookup table does on some GPUs).
"""

from __future__ import annotations

import torch
from torch import Tensor

from graftlm.errors import ModelError
from graftlm.kernels.nf4.chunks import spans
from graftlm.kernels.nf4.codebook import nf4_pairs
from graftlm.kernels.nf4.double_quant import block_scales
from graftlm.kernels.nf4.weight import NF4Weight

__all__ = ["dequantize"]


def dequantize(w4: NF4Weight, dtype: torch.dtype | None = None) -> Tensor:
    """The weight as a dense tensor.

    Args:
        w4: a stored weight, on any device.
        dtype: a floating-point type; ``None`` takes the one the weight had.

    Returns:
        A tensor of shape ``w4.shape`` on the device of ``w4``.
    """
    dtype = w4.dtype if dtype is None else dtype
    if not dtype.is_floating_point:
        raise ModelError(
            f"cannot dequantise to {dtype}: expected a floating-point type, such as torch.float32"
        )
    pairs = nf4_pairs(w4.device)
    scales = block_scales(w4)
    out = torch.empty(w4.numel, dtype=dtype, device=w4.device)
    for elements, packed, blocks, width in spans(w4.numel, w4.block_size):
        levels = pairs.index_select(0, w4.codes[packed].int()).view(-1)
        levels = levels[: elements.stop - elements.start].view(-1, width)
        out[elements] = levels.mul_(scales[blocks].view(-1, 1)).view(-1)
    return out.view(w4.shape)
