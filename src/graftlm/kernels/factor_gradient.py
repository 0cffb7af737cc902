"""The gradient of one factor of a low-rank update: a product of a thin and a wide matrix.

    dA = vᵀ x     [r, in]        dB = s · dyᵀ u     [out, r]

PyTorch's product in 16 bits compiles a kernel for every number of rows it meets and keeps it, which
for rows of real text adds up to a tenth of a small model's memory. Its time goes into transposing
the thin factor, not into reading the wide one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graftlm.errors import ModelError
from graftlm.kernels.operator import Case, Operator
from graftlm.kernels.products import draw
from graftlm.kernels.reference import nf4_linear as reference

__all__ = ["factor_gradient"]


def factor_gradient(
    thin: Tensor, wide: Tensor, scaling: float = 1.0, turned: bool = False, compute: str = "auto"
) -> Tensor:
    """``scaling · thinᵀ wide`` over all rows.

    Args:
        thin: (..., r).
        wide: (..., n), of the same type and leading dimensions.
        scaling: a factor.
        turned: return the transpose.
        compute: the arithmetic; see `graftlm.kernels.products.compute_type`.

    Returns:
        [r, n], or turned, [n, r]; float32, or float64 for such factors.

    Raises:
        ModelError: the two differ in type, device or leading dimensions.
    """
    result: Tensor = _factor_gradient(thin, wide, scaling, turned, compute)
    return result


def _check(thin: Tensor, wide: Tensor, scaling: float, turned: bool, compute: str) -> None:
    alike = thin.dtype == wide.dtype and thin.device == wide.device
    if thin.shape[:-1] != wide.shape[:-1] or not alike or not thin.ndim:
        raise ModelError(
            f"thin is {tuple(thin.shape)} of {thin.dtype} on {thin.device} and wide "
            f"{tuple(wide.shape)} of {wide.dtype} on {wide.device}: expected the same but for the "
            "last dimension"
        )


def _reference(thin: Tensor, wide: Tensor, scaling: float, turned: bool, compute: str) -> Tensor:
    kind = reference.compute_type(wide)
    t, x = (m.reshape(-1, m.shape[-1]).to(kind) for m in (thin, wide))
    return (x.T @ t if turned else t.T @ x).mul_(scaling).to(_result_type(wide))


def _fake(thin: Tensor, wide: Tensor, scaling: float, turned: bool, compute: str) -> Tensor:
    rank, features = thin.shape[-1], wide.shape[-1]
    shape = (features, rank) if turned else (rank, features)
    return wide.new_empty(shape, dtype=_result_type(wide))


def _result_type(wide: Tensor) -> torch.dtype:
    return torch.float64 if wide.dtype == torch.float64 else torch.float32


def _flops(thin: Tensor, wide: Tensor, *rest: object) -> int:
    return 2 * thin.shape[-1] * wide.numel()


def _workspace(thin: Tensor, wide: Tensor, *rest: object) -> int:
    """Both factors in float32."""
    return 4 * (thin.numel() + wide.numel())


def _cases() -> list[Case]:
    thin, wide = draw(256, 16), draw(256, 640, seed=1)
    narrow = thin.bfloat16(), wide.bfloat16()
    return [
        Case("", (thin, wide, 1.0, False, "float32"), 1e-5),
        Case("turned", (thin, wide, 0.5, True, "float32"), 1e-5),
        Case("bfloat16", (*narrow, 1.0, False, "bfloat16"), 2e-2),
    ]


_factor_gradient = Operator(
    schema="factor_gradient(Tensor thin, Tensor wide, float scaling, bool turned, str compute) "
    "-> Tensor",
    family="nf4_linear",  # the kernel multiplies the same tiles
    check=_check,
    reference=_reference,
    fake=_fake,
    cases=_cases,
    flops=_flops,
    workspace=_workspace,
)
