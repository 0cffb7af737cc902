"""Blockwise quantisation to 4-bit NormalFloat.

QLoRA, https://arxiv.org/abs/2305.14314, equations 1 and 4. For each block X of B weights:

    c   = absmax(X) = max |X_i|
    X4_i = argmin_j | X_i / c - q_j |

    paper   here
    X       values, a row of (blocks, block_size)
    B       block_size
    c       absmax
    q_j     codebook.nf4_levels
    X4      codes, two a byte, the first weight in the high nibble

The argmin is a count of the midpoints below `X_i / c`, in float32 whatever the type of the weight.
bitsandbytes' arithmetic is followed to the last bit, and it has three corners:

- a whole block is multiplied by `1 / c`, a short last block divided by `c`: near a midpoint the two
  round apart;
- `c` is held above 1e-38 in that quotient, so a block of smaller values becomes all zero;
- a short last block stores the held-up maximum, a whole one stores `c` itself.

Rejected: `argmin` over a (…, 16) tensor of distances (sixteen times the memory; ties go the other
way for half of the codes), and `torch.bucketize` (the same answer at half the speed on a CPU).
NaN and infinity have no place on the grid: bitsandbytes stores nonsense, this raises.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from graftlm._compat.fake import is_fake
from graftlm.errors import ConfigError, ModelError
from graftlm.kernels.nf4.chunks import BLOCK_SIZES, spans
from graftlm.kernels.nf4.codebook import nf4_thresholds
from graftlm.kernels.nf4.double_quant import double_quantize
from graftlm.kernels.nf4.weight import NF4Weight

__all__ = ["assemble", "check", "pack", "quantize", "quantize_blocks", "unpack"]

SMALLEST_ABSMAX = 1e-38
ZERO_CODE = 7


def quantize(w: Tensor, block_size: int = 64, double_quant: bool = True) -> NF4Weight:
    """Quantise a weight to NF4, bit-identical to bitsandbytes on a CPU.

    Args:
        w: any shape and device; float32, bfloat16 or float16; at least one element, all finite.
        block_size: consecutive weights that share one scale, one of `BLOCK_SIZES`.
        double_quant: store the scales themselves in 8 bits: 4.127 bits a weight instead of 4.5.

    Returns:
        The stored weight, on the device of ``w``.

    Raises:
        ConfigError: ``block_size`` is not one of `BLOCK_SIZES`.
        ModelError: ``w`` is empty, of another type, or holds NaN or infinity.
    """
    check(w, block_size)
    codes, absmax = quantize_blocks(w, block_size)
    return assemble(w, codes, absmax, block_size, double_quantize if double_quant else None)


def quantize_blocks(w: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """The codes and the float32 block maxima of a weight that passed `check`."""
    flat = w.detach().reshape(-1)
    numel = flat.numel()
    codes = torch.empty((numel + 1) // 2, dtype=torch.uint8, device=w.device)
    absmax = torch.empty(-(-numel // block_size), dtype=torch.float32, device=w.device)
    thresholds = nf4_thresholds().tolist()
    for elements, packed, blocks, width in spans(numel, block_size):
        values = flat[elements].float().view(-1, width)
        peak = values.abs().amax(dim=1, keepdim=True)
        held = peak.clamp(min=SMALLEST_ABSMAX)
        if width == block_size:
            absmax[blocks] = peak.view(-1)
            scaled = values * (1.0 / held)
        else:
            absmax[blocks] = held.view(-1)
            scaled = values / held
        codes[packed] = pack(_count_below(scaled.view(-1), thresholds))
    return codes, absmax


def assemble(
    w: Tensor,
    codes: Tensor,
    absmax: Tensor,
    block_size: int,
    shrink: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]] | None,
) -> NF4Weight:
    """The stored form of ``w`` from its blocks; the one place that refuses NaN and infinity.

    ``shrink`` is `double_quantize` or its like, or ``None`` where the maxima stay in float32.
    """
    _check_finite(absmax, w.numel(), block_size)
    nested_absmax = offset = None
    if shrink is not None:
        absmax, nested_absmax, offset = shrink(absmax)
    return NF4Weight(
        codes, absmax, nested_absmax, offset, tuple(w.shape), w.dtype, block_size=block_size
    )


def _count_below(scaled: Tensor, thresholds: list[float]) -> Tensor:
    """uint8 ``[n]``: how many thresholds each value exceeds, which is the code of its level."""
    codes = torch.zeros_like(scaled, dtype=torch.uint8)
    above = torch.empty_like(scaled, dtype=torch.bool)
    for threshold in thresholds:
        codes += torch.gt(scaled, threshold, out=above).view(torch.uint8)
    return codes


def pack(codes: Tensor) -> Tensor:
    """uint8 ``[n]`` of codes → uint8 ``[ceil(n / 2)]``, the first in the high nibble."""
    if codes.numel() % 2:
        codes = torch.cat([codes, codes.new_full((1,), ZERO_CODE)])
    return (codes[::2] << 4) | codes[1::2]


def unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    """uint8 ``[ceil(n / 2)]`` → uint8 of ``shape``, the codes; the reverse of `pack`."""
    return torch.stack([packed >> 4, packed & 15], dim=1).view(-1)[: shape.numel()].view(shape)


def check(w: Tensor, block_size: int) -> None:
    """Raise unless ``w`` can be quantised in blocks of ``block_size``."""
    if block_size not in BLOCK_SIZES:
        raise ConfigError(f"block size {block_size}: expected one of {BLOCK_SIZES}; 64 is usual")
    if w.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ModelError(
            f"cannot quantise a tensor of {w.dtype}: expected float32, bfloat16 or float16; "
            "convert it first, for example with .float()"
        )
    if w.numel() == 0:
        raise ModelError(
            f"cannot quantise a tensor of shape {tuple(w.shape)}: expected at least one element; "
            "leave empty weights unquantised"
        )


def _check_finite(absmax: Tensor, numel: int, block_size: int) -> None:
    if is_fake(absmax):
        return  # a plan has no values
    if math.isfinite(float(absmax.sum())):
        return  # so is each of them
    bad = torch.nonzero(~torch.isfinite(absmax)).view(-1)
    if bad.numel():
        first = int(bad[0]) * block_size
        last = min(first + block_size, numel) - 1
        raise ModelError(
            f"cannot quantise: NaN or infinity in {bad.numel()} of {absmax.numel()} blocks, first "
            f"among elements {first} to {last} of the flattened weight; expected "
            "finite values; check the checkpoint, or leave this weight unquantised"
        )
