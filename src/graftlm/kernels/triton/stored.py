"""Parts of a stored 4-bit weight inside a kernel: the scale of a block.

c = absmax                                       float32 maxima
c = d[absmax8] · nested_absmax[block // 256] + o      double quantisation, arXiv 2305.14314
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from graftlm.kernels.nf4.double_quant import GROUP_SIZE
from graftlm.kernels.triton.launch import table

__all__ = ["block_scale", "stored_arguments"]

GROUP = tl.constexpr(GROUP_SIZE)


@triton.jit
def block_scale(absmax, nested, offset, dynamic, block, mask, NESTED: tl.constexpr):
    """float32: the scales of some blocks, of any shape; 0 where ``mask`` is false."""
    if NESTED:
        code = tl.load(absmax + block, mask=mask, other=0).to(tl.int32)
        group = tl.load(nested + block // GROUP, mask=mask, other=0.0)
        scale = tl.load(dynamic + code) * group + tl.load(offset)
    else:
        scale = tl.load(absmax + block, mask=mask, other=0.0)
    return tl.where(mask, scale, 0.0)


def stored_arguments(
    absmax: Tensor, nested_absmax: Tensor | None, offset: Tensor | None
) -> tuple[tuple[Tensor, ...], bool]:
    """The tensors that `block_scale` reads, after the codes, and whether the scales are nested."""
    device = absmax.device
    tables: tuple[Tensor, Tensor] = table("levels", device), table("dynamic", device)
    if nested_absmax is None or offset is None:
        return (absmax.contiguous(), *(tables[0],) * 2, *tables), False
    return (absmax.contiguous(), nested_absmax.contiguous(), offset, *tables), True
