"""The mean row of an output layer, kept as long as the layer stays what it is.

    w̄ = 1/V · Σ_v w_v

A sparse gradient puts on it what it leaves out of the softmax (csrc/cross_entropy.hpp), and label
smoothing needs it too. It takes a look at the whole weight, a third of a gigabyte for Gemma's
262,144 words: of a short step, a noticeable part if it were taken each time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from graftlm.kernels import native
from graftlm.kernels.native_args import WEIGHT_TYPES
from graftlm.kernels.register import define

__all__ = ["mean_row"]

_known: Any = WeakIdKeyDictionary()


def mean_row(weight: Tensor, row_scale: Tensor | None = None) -> Tensor:
    """The mean of all rows, by the native kernel.

    A change is noticed as autograd notices it, or by another memory or type: not one that is made
    in place behind its back, through ``weight.data``.

    Args:
        weight: (V, D) of a type that `graftlm.kernels.native.takes_rows` has accepted.
        row_scale: (V,): row r is that times what ``weight`` holds.

    Returns:
        (D,) float32; not to be written to.
    """
    weight_now, scale_now = _state(weight), None if row_scale is None else _state(row_scale)
    if weight_now == () or scale_now == ():  # nobody can say whether they were changed
        return _taken(weight, row_scale)
    known = _known.get(weight)
    if known is None or known[0] is not row_scale or known[1:3] != (weight_now, scale_now):
        known = _known[weight] = (row_scale, weight_now, scale_now, _taken(weight, row_scale))
    found: Tensor = known[3]
    return found


def _state(t: Tensor) -> tuple[object, ...]:
    """What changes with the tensor; empty if it cannot be told."""
    if type(t) not in (Tensor, nn.Parameter) or t.is_inference():
        return ()
    return t._version, t.data_ptr(), t.dtype, t.shape


def _taken(weight: Tensor, row_scale: Tensor | None) -> Tensor:
    mean: Tensor = _mean_row(weight.detach(), row_scale)
    return mean


def _run(weight: Tensor, row_scale: Tensor | None) -> Tensor:
    weight = weight.contiguous()
    row_scale = None if row_scale is None else row_scale.contiguous()
    mean = _empty(weight, row_scale)
    native.kernels().mean_row(
        weight.data_ptr(),
        WEIGHT_TYPES[weight.dtype],
        0 if row_scale is None else row_scale.data_ptr(),
        *weight.shape,
        mean.data_ptr(),
        torch.get_num_threads(),
    )
    return mean


def _empty(weight: Tensor, row_scale: Tensor | None) -> Tensor:
    return weight.new_empty(weight.shape[1], dtype=torch.float32)


_mean_row = define("mean_row(Tensor weight, Tensor? row_scale) -> Tensor", _run, _empty)
