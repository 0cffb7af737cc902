"""A rank's part of a weight in NF4, without reading the rest of the weight.

The weight is flattened and cut into blocks of B, which are quantised one by one (arXiv 2305.14314,
equation 1). So a rank reads the blocks that its codes lie in:

    codes [first, last) of ceil(n / 2) bytes    elements [2 first, 2 last)    whole blocks around

The block maxima c [b] are needed by all ranks: double quantisation takes their mean off (equation
6), and their chunks begin elsewhere than those of the codes. They are exchanged in float32, 1/16
byte a weight. A block that two ranks read counts for the one that holds its first element.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from graftlm.frozen.share import DenseSource, Share, chunk, cut
from graftlm.frozen.weight import StorageSettings
from graftlm.kernels import ops
from graftlm.kernels.nf4.weight import NF4Weight

__all__ = ["quantized_share"]


def quantized_share(
    source: DenseSource, settings: StorageSettings, share: Share, device: torch.device
) -> tuple[NF4Weight, dict[str, Tensor]]:
    """Quantise what a rank holds.

    Args:
        source: the dense matrix (out, in).
        settings: of the format.
        share: the rank; all call this for the same matrices in the same order.
        device: where the part lies.

    Returns:
        The whole weight on the meta device (the offset has its value), and the rank's part of
        codes and maxima, bit for bit that of the whole weight quantised at once.
    """
    block, numel = settings.block_size, math.prod(source.shape)
    first, last = chunk(-(-numel // 2), share)
    start, stop = 2 * first, min(2 * last, numel)
    lower, upper = start // block * block, min(-(-stop // block) * block, numel)
    codes = torch.empty(0, dtype=torch.uint8, device=device)
    owned = torch.empty(0, dtype=torch.float32, device=device)
    if start < stop:
        piece = ops.quantize(source.elements(lower, upper).to(device), block, double_quant=False)
        codes = piece.codes[(start - lower) // 2 : (stop - lower + 1) // 2].clone()
        begin, end = -(-start // block), -(-stop // block)
        owned = piece.absmax[begin - lower // block : end - lower // block]
    absmax = share.joined(owned)
    nested_absmax = offset = None
    if settings.double_quant:
        absmax, nested_absmax, offset = ops.shrink_maxima(absmax)
    parts = {"codes": codes, "absmax": cut(absmax, share).clone()}
    if nested_absmax is not None:
        parts["nested_absmax"] = cut(nested_absmax, share).clone()
    whole = NF4Weight(
        codes=torch.empty(-(-numel // 2), dtype=torch.uint8, device="meta"),
        absmax=absmax.to("meta"),
        nested_absmax=None if nested_absmax is None else nested_absmax.to("meta"),
        offset=offset,
        shape=tuple(source.shape),
        dtype=source.dtype,
        block_size=block,
    )
    return whole, parts
