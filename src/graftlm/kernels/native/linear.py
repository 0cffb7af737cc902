"""Products with a frozen weight (csrc/linear.cpp, csrc/factor_gradient.cpp).

`linear` and `linear_backward` of the extension take 21 arguments. nanobind needs 0.6 µs to read
them by position and 3 µs by name, so only these two are called by position. `ARGUMENTS` states the
order, and a test compares it with C++.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graftlm.kernels.native.arguments import FROZEN, UPDATE, Factors, Frozen, LowRank, address
from graftlm.kernels.native.compiled import (
    COMPUTE,
    TYPES,
    WEIGHT_TYPES,
    constant,
    kernels,
    takes,
    takes_rows,
)
from graftlm.kernels.nf4.weight import NF4Weight
from graftlm.kernels.operator import implement
from graftlm.kernels.products import compute_type, rows_of, weight

__all__ = ["ARGUMENTS", "multiply", "multiply_backward", "register"]

ARGUMENTS = {
    "linear": (
        *(*FROZEN, "x", "type", "lines", "bias", "y"),
        *(*UPDATE, "compute", "threads"),
    ),
    "linear_backward": (
        *(*FROZEN, "dy", "type", "lines", "dx"),
        *(*UPDATE, "compute", "threads"),
    ),
}


def register() -> None:
    """Add these kernels to their operators."""
    for name, function, accepts, workspace in (
        ("nf4_linear", _linear, _takes, _packed_input),
        ("nf4_linear_backward", _linear_backward, _takes, _packed_input),
        ("nf4_lora_linear", _lora, _takes, _packed_input_and_update),
        ("nf4_lora_linear_backward", _lora_backward, _takes, _packed_input_and_update),
        ("lora_linear", _dense_lora, _takes_dense, _packed_input_and_update),
        ("lora_linear_backward", _dense_lora_backward, _takes_dense, _packed_input_and_update),
        ("factor_gradient", _factor_gradient, _takes_wide, _packed_factor),
        ("few_rows_linear", _few_rows, _takes_few_rows, _nothing),
        ("mean_row", _mean_row, takes_rows, _nothing),
    ):
        implement(name, "cpu", function, accepts=accepts, workspace=workspace, label="native")


# ---------------------------------------------------------------- the frozen product


def multiply(
    x: Tensor, w: NF4Weight | Tensor, bias: Tensor | None, compute: str, update: LowRank | None
) -> tuple[Tensor, Tensor]:
    """``x Wᵀ + bias``, (..., out_features) in the type of ``x``, and the thin product.

    With an ``update`` B A, ``scaling · u Bᵀ`` is added, and ``u = x Aᵀ`` (..., rank) is the second
    result; without one that is empty.
    """
    out_features = w.shape[0]
    frozen = Frozen(w)
    x = x.contiguous()
    y = x.new_empty((*x.shape[:-1], out_features))
    bias = None if bias is None else bias.float().contiguous()
    factors = Factors(update, x)
    kernels().linear(
        *frozen.arguments,
        x.data_ptr(),
        TYPES[x.dtype],
        y.numel() // max(out_features, 1),
        address(bias),
        y.data_ptr(),
        *factors.arguments,
        COMPUTE[compute],
        torch.get_num_threads(),
    )
    return y, factors.thin


def multiply_backward(
    dy: Tensor, w: NF4Weight | Tensor, compute: str, update: LowRank | None
) -> tuple[Tensor, Tensor]:
    """``dy W``, (..., in_features) in the type of ``dy``, and the thin product.

    With an ``update`` B A, ``v A`` is added, and ``v = scaling · dy B`` (..., rank) is the second
    result; without one that is empty.
    """
    in_features = w.shape[1]
    frozen = Frozen(w)
    dy = dy.contiguous()
    dx = dy.new_empty((*dy.shape[:-1], in_features))
    factors = Factors(update, dy)
    kernels().linear_backward(
        *frozen.arguments,
        dy.data_ptr(),
        TYPES[dy.dtype],
        dx.numel() // max(in_features, 1),
        dx.data_ptr(),
        *factors.arguments,
        COMPUTE[compute],
        torch.get_num_threads(),
    )
    return dx, factors.thin


def _linear(x: Tensor, *rest: Any) -> Tensor:
    *parts, bias, compute = rest
    return multiply(x, weight(*parts), bias, compute_type(compute, x.dtype), None)[0]


def _linear_backward(dy: Tensor, *rest: Any) -> Tensor:
    *parts, compute = rest
    return multiply_backward(dy, weight(*parts), compute_type(compute, dy.dtype), None)[0]


def _lora(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *parts, bias, A, B, scaling, compute = rest
    update = LowRank(A, B, scaling)
    return multiply(x, weight(*parts), bias, compute_type(compute, x.dtype), update)


def _lora_backward(dy: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *parts, A, B, scaling, compute = rest
    update = LowRank(A, B, scaling)
    return multiply_backward(dy, weight(*parts), compute_type(compute, dy.dtype), update)


def _dense_lora(
    x: Tensor, w: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scaling: float, compute: str
) -> tuple[Tensor, Tensor]:
    return multiply(x, w, bias, compute_type(compute, x.dtype), LowRank(A, B, scaling))


def _dense_lora_backward(
    dy: Tensor, w: Tensor, A: Tensor, B: Tensor, scaling: float, compute: str
) -> tuple[Tensor, Tensor]:
    return multiply_backward(dy, w, compute_type(compute, dy.dtype), LowRank(A, B, scaling))


def _takes(x: Tensor, *_: Any) -> bool:
    return takes(x)


def _takes_dense(x: Tensor, w: Tensor, *_: Any) -> bool:
    return takes(x) and takes(w) and w.numel() > 0


def _packed_input(x: Tensor, *_: Any) -> int:
    """The packed input: so many rows at a time."""
    return _packed_rows(x) * int(x.shape[-1]) * 4


def _packed_input_and_update(x: Tensor, *rest: Any) -> int:
    """The same, and the thin product; the last arguments are A, B, scaling and compute."""
    rank = int(rest[-4].shape[0])
    return _packed_input(x) + _packed_rows(x) * rank * 4


def _packed_rows(x: Tensor) -> int:
    return min(rows_of(x), constant("packed_rows"))


# ---------------------------------------------------------------- thin and few


def _factor_gradient(
    thin: Tensor, wide: Tensor, scaling: float, turned: bool, compute: str
) -> Tensor:
    thin, wide = thin.contiguous(), wide.contiguous()
    rank, features = thin.shape[-1], wide.shape[-1]
    out = wide.new_empty((features, rank) if turned else (rank, features), dtype=torch.float32)
    kernels().factor_gradient(
        t=thin.data_ptr(),
        x=wide.data_ptr(),
        type=TYPES[wide.dtype],
        rows=wide.numel() // max(features, 1),
        rank=rank,
        cols=features,
        scaling=scaling,
        turned=turned,
        out=out.data_ptr(),
        compute=COMPUTE[compute_type(compute, wide.dtype)],
        threads=torch.get_num_threads(),
    )
    return out


def _takes_wide(thin: Tensor, wide: Tensor, *_: Any) -> bool:
    return takes(wide)


def _packed_factor(thin: Tensor, *_: Any) -> int:
    """The thin factor widened, transposed and packed, all of it."""
    return 3 * 4 * thin.numel()


def _few_rows(x: Tensor, w: Tensor, row_scale: Tensor | None) -> Tensor:
    out_features, in_features = w.shape
    x, w = x.contiguous(), w.detach().contiguous()
    row_scale = None if row_scale is None else row_scale.contiguous()
    y = x.new_empty((*x.shape[:-1], out_features))
    kernels().dense_linear(
        w=w.data_ptr(),
        weight_type=WEIGHT_TYPES[w.dtype],
        row_scale=address(row_scale),
        out=out_features,
        cols=in_features,
        x=x.data_ptr(),
        type=TYPES[x.dtype],
        rows=y.numel() // max(out_features, 1),
        y=y.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return y


def _takes_few_rows(x: Tensor, w: Tensor, row_scale: Tensor | None) -> bool:
    return takes(x) and takes_rows(w, row_scale)


def _mean_row(w: Tensor, row_scale: Tensor | None) -> Tensor:
    w = w.contiguous()
    row_scale = None if row_scale is None else row_scale.contiguous()
    mean = w.new_empty(w.shape[1], dtype=torch.float32)
    kernels().mean_row(
        weight=w.data_ptr(),
        type=WEIGHT_TYPES[w.dtype],
        row_scale=address(row_scale),
        vocabulary=w.shape[0],
        dim=w.shape[1],
        mean=mean.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return mean


def _nothing(*_: Any) -> int:
    return 0
