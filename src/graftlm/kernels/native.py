"""The native kernels: loading them, and handing them tensors.

The extension is built without PyTorch's headers, so tensors cross as addresses. What is passed on
is therefore checked, here and in `crossing.py`: type, layout, size. The kernels are in csrc/.
"""

from __future__ import annotations

import functools
import logging
import os
import types

import torch
from torch import Tensor

from graftlm.errors import ModelError
from graftlm.kernels.native_args import TYPES, WEIGHT_TYPES, Factors, Frozen, LowRank, Stored
from graftlm.kernels.nf4.codebook import grid_codes
from graftlm.kernels.nf4.double_quant import GROUP_SIZE, mean_of
from graftlm.kernels.nf4.weight import NF4Weight

__all__ = [
    "absence",
    "dense_linear",
    "dequantize",
    "double_quantize",
    "extension",
    "factor_gradient",
    "kernels",
    "linear",
    "linear_backward",
    "quantize",
    "takes",
    "takes_rows",
]

_COMPUTE = {"float32": 0, "bfloat16": 1, "bfloat16x3": 2}

log = logging.getLogger(__name__)


@functools.cache
def _load() -> tuple[types.ModuleType | None, str]:
    """The extension, or ``None`` and why. Said once: the reference is right, but slow."""
    if os.environ.get("GRAFTLM_NATIVE") == "0":
        return None, "GRAFTLM_NATIVE=0"
    try:
        # After torch: the kernels run on the threads of the OpenMP runtime it has loaded.
        from graftlm import _native  # type: ignore[attr-defined, unused-ignore]

        _native.level()
    except ImportError as error:
        reason = f"the extension is not installed: {error}"
    except ValueError as error:
        raise ModelError(str(error)) from None
    else:
        return _native, ""
    log.warning("graftlm runs without its native kernels, several times slower: %s", reason)
    return None, reason


def extension() -> types.ModuleType | None:
    """The compiled module, or ``None``."""
    return _load()[0]


def absence() -> str:
    """Why there is no extension; empty if there is one."""
    return _load()[1]


def takes(tensor: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether a kernel exists for the device of this tensor and its type, or the one given."""
    return tensor.is_cpu and (dtype or tensor.dtype) in TYPES and extension() is not None


def takes_rows(weight: Tensor, row_scale: Tensor | None) -> bool:
    """Whether the kernels read this weight: as it is, or in 8 bits with its scales."""
    if row_scale is None:
        return takes(weight)
    scaled = row_scale.dtype == torch.float32 and row_scale.shape == weight.shape[:1]
    return scaled and weight.dtype == torch.int8 and weight.is_cpu and takes(row_scale)


def quantize(w: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """The codes and float32 block maxima of ``w``, flattened."""
    flat = w.detach().contiguous()
    numel = flat.numel()
    codes = torch.empty((numel + 1) // 2, dtype=torch.uint8)
    absmax = torch.empty(-(-numel // block_size), dtype=torch.float32)
    kernels().quantize(
        flat.data_ptr(),
        TYPES[flat.dtype],
        numel,
        block_size,
        codes.data_ptr(),
        absmax.data_ptr(),
        torch.get_num_threads(),
    )
    return codes, absmax


def double_quantize(absmax: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `graftlm.kernels.nf4.double_quant.double_quantize`, to the bit."""
    offset, grid = mean_of(absmax), _grid()
    codes = torch.empty(absmax.shape, dtype=torch.uint8)
    nested_absmax = torch.empty(-(-absmax.numel() // GROUP_SIZE), dtype=torch.float32)
    kernels().double_quantize(
        absmax.data_ptr(),
        absmax.numel(),
        float(offset),
        grid.data_ptr(),
        grid.numel(),
        codes.data_ptr(),
        nested_absmax.data_ptr(),
        torch.get_num_threads(),
    )
    return codes, nested_absmax, offset


@functools.cache
def _grid() -> Tensor:
    return grid_codes()


def dequantize(w4: NF4Weight, dtype: torch.dtype) -> Tensor:
    """The dense weight; the maxima are restored on the way and never stored."""
    weight = Stored(w4, 1, w4.numel)
    out = torch.empty(w4.shape, dtype=dtype)
    kernels().dequantize(*weight.arguments, out.data_ptr(), TYPES[dtype], torch.get_num_threads())
    return out


def linear(
    x: Tensor,
    w: NF4Weight | Tensor,
    bias: Tensor | None,
    compute: str,
    update: LowRank | None = None,
) -> tuple[Tensor, Tensor]:
    """``x Wᵀ + bias``, (..., out_features) in the type of ``x``, and the thin product.

    W is stored in 4 bits or dense, of any type there is a kernel for.

    With an ``update`` B A, ``scaling · u Bᵀ`` is added, and ``u = x Aᵀ`` (..., rank) is the second
    result; without one that is empty.
    """
    out_features = w.shape[0]
    weight = Frozen(w)
    x = x.contiguous()
    y = x.new_empty((*x.shape[:-1], out_features))
    if bias is not None:
        bias = bias.float().contiguous()
    factors = Factors(update, x)
    kernels().linear(
        *weight.arguments,
        x.data_ptr(),
        TYPES[x.dtype],
        y.numel() // max(out_features, 1),
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        *factors.arguments,
        _COMPUTE[compute],
        torch.get_num_threads(),
    )
    return y, factors.thin


def linear_backward(
    dy: Tensor, w: NF4Weight | Tensor, compute: str, update: LowRank | None = None
) -> tuple[Tensor, Tensor]:
    """``dy W``, (..., in_features) in the type of ``dy``, and the thin product.

    With an ``update`` B A, ``v A`` is added, and ``v = scaling · dy B`` (..., rank) is the second
    result; without one that is empty.
    """
    in_features = w.shape[1]
    weight = Frozen(w)
    dy = dy.contiguous()
    dx = dy.new_empty((*dy.shape[:-1], in_features))
    factors = Factors(update, dy)
    kernels().linear_backward(
        *weight.arguments,
        dy.data_ptr(),
        TYPES[dy.dtype],
        dx.numel() // max(in_features, 1),
        dx.data_ptr(),
        *factors.arguments,
        _COMPUTE[compute],
        torch.get_num_threads(),
    )
    return dx, factors.thin


def factor_gradient(
    thin: Tensor, wide: Tensor, scaling: float, turned: bool, compute: str
) -> Tensor:
    """``scaling · thinᵀ wide`` in float32, [rank, n], or turned, [n, rank]; both of one type."""
    thin, wide = thin.contiguous(), wide.contiguous()
    rank, features = thin.shape[-1], wide.shape[-1]
    shape = (features, rank) if turned else (rank, features)
    out = wide.new_empty(shape, dtype=torch.float32)
    kernels().factor_gradient(
        thin.data_ptr(),
        wide.data_ptr(),
        TYPES[wide.dtype],
        wide.numel() // max(features, 1),
        rank,
        features,
        scaling,
        turned,
        out.data_ptr(),
        _COMPUTE[compute],
        torch.get_num_threads(),
    )
    return out


def dense_linear(x: Tensor, weight: Tensor, row_scale: Tensor | None = None) -> Tensor:
    """``x Wᵀ`` for few rows: (..., in_features) → (..., out_features) in the type of ``x``.

    ``row_scale`` (out_features,) float32: rows of W are that times rows of ``weight``, an int8.
    """
    out_features, in_features = weight.shape
    x, weight = x.contiguous(), weight.detach().contiguous()
    scales = None if row_scale is None else row_scale.contiguous()
    y = x.new_empty((*x.shape[:-1], out_features))
    kernels().dense_linear(
        weight.data_ptr(),
        WEIGHT_TYPES[weight.dtype],
        0 if scales is None else scales.data_ptr(),
        out_features,
        in_features,
        x.data_ptr(),
        TYPES[x.dtype],
        y.numel() // max(out_features, 1),
        y.data_ptr(),
        torch.get_num_threads(),
    )
    return y


def kernels() -> types.ModuleType:
    """The compiled module, where `takes` said that there is one."""
    module = extension()
    assert module is not None, "ask takes() first"
    return module
