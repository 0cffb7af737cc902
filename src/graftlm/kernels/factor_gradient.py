"""The gradient of one factor of a low-rank update: thin and wide, summed over their rows.

    dA = vᵀ x     [r, in]        dB = s · dyᵀ u     [out, r]

PyTorch's product in 16 bits compiles a kernel for every number of rows it meets and keeps it, which
for rows of real text adds up to a tenth of a small model's memory; and it is bound by turning its
thin factor, not by reading the wide one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from graftlm.errors import ModelError
from graftlm.kernels import native, reference
from graftlm.kernels.library import compute_type
from graftlm.kernels.register import define

__all__ = ["factor_gradient"]


def factor_gradient(
    thin: Tensor, wide: Tensor, scaling: float = 1.0, turned: bool = False, compute: str = "auto"
) -> Tensor:
    """``scaling · thinᵀ wide`` over all rows.

    Args:
        thin: (..., r).
        wide: (..., n), of the same type and leading dimensions.
        scaling: a factor.
        turned: give the transpose.
        compute: the arithmetic, as for the products of `graftlm.kernels.ops`.

    Returns:
        [r, n], or turned, [n, r]; float32, or float64 for such factors.
    """
    result: Tensor = _factor_gradient(thin, wide, scaling, turned, compute)
    return result


def _run(thin: Tensor, wide: Tensor, scaling: float, turned: bool, compute: str) -> Tensor:
    alike = thin.dtype == wide.dtype and thin.device == wide.device
    if thin.shape[:-1] != wide.shape[:-1] or not alike or not thin.ndim:
        raise ModelError(
            f"thin is {tuple(thin.shape)} of {thin.dtype} on {thin.device} and wide "
            f"{tuple(wide.shape)} of {wide.dtype} on {wide.device}: expected the same but for the "
            "last dimension"
        )
    if native.takes(wide):
        return native.factor_gradient(
            thin, wide, scaling, turned, compute_type(compute, wide.dtype)
        )
    kind = reference.compute_type(wide)
    t, x = (m.reshape(-1, m.shape[-1]).to(kind) for m in (thin, wide))
    return (x.T @ t if turned else t.T @ x).mul_(scaling).to(_result_type(wide))


def _fake(thin: Tensor, wide: Tensor, scaling: float, turned: bool, compute: str) -> Tensor:
    rank, features = thin.shape[-1], wide.shape[-1]
    shape = (features, rank) if turned else (rank, features)
    return wide.new_empty(shape, dtype=_result_type(wide))


def _result_type(wide: Tensor) -> torch.dtype:
    return torch.float64 if wide.dtype == torch.float64 else torch.float32


_factor_gradient = define(
    "factor_gradient(Tensor thin, Tensor wide, float scaling, bool turned, str compute) -> Tensor",
    _run,
    _fake,
)


@register_flop_formula(torch.ops.graftlm.factor_gradient)
def _flops(thin_shape: Any, wide_shape: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(2 * thin_shape[-1] * math.prod(wide_shape))
