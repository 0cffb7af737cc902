"""The mean row of an output layer, cached until the layer changes.

    w̄ = 1/V · Σ_v w_v

A sparse gradient of the loss uses it for the softmax entries that it leaves out
(csrc/cross_entropy.hpp), and label smoothing needs it too. Computing it reads the whole weight, a
third of a gigabyte for Gemma's 262,144 words, which is a noticeable part of a short step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from graftlm._compat.torch_objects import version_of
from graftlm.errors import ModelError
from graftlm.kernels.operator import Case, Operator
from graftlm.kernels.products import draw

__all__ = ["mean_row"]

_known: Any = WeakIdKeyDictionary()


def mean_row(weight: Tensor, row_scale: Tensor | None = None) -> Tensor:
    """The mean of all rows.

    A change of the weight is detected by autograd's version of it, or by other memory or another
    type. A change in place through ``weight.data`` is not detected.

    Args:
        weight: (V, D), of any floating-point type, or int8 with ``row_scale``.
        row_scale: (V,): row r of the layer is ``row_scale[r] * weight[r]``.

    Returns:
        (D,) float32; do not change it.

    Raises:
        ModelError: the scales do not fit.
    """
    weight_now, scale_now = _state(weight), None if row_scale is None else _state(row_scale)
    if weight_now == () or scale_now == ():  # a change could not be detected
        return _computed(weight, row_scale)
    known = _known.get(weight)
    if known is None or known[0] is not row_scale or known[1:3] != (weight_now, scale_now):
        known = (row_scale, weight_now, scale_now, _computed(weight, row_scale))
        _known[weight] = known
    kept: Tensor = known[3]
    return kept


def _state(t: Tensor) -> tuple[object, ...]:
    """Values that change if the tensor changes; empty if that cannot be detected."""
    if type(t) not in (Tensor, nn.Parameter) or t.is_inference():
        return ()
    return version_of(t), t.data_ptr(), t.dtype, t.shape


def _computed(weight: Tensor, row_scale: Tensor | None) -> Tensor:
    mean: Tensor = _mean_row(weight.detach(), row_scale)
    return mean


def _check(weight: Tensor, row_scale: Tensor | None) -> None:
    if weight.ndim != 2:
        raise ModelError(f"weight has shape {tuple(weight.shape)}: expected (V, D)")
    if row_scale is not None and row_scale.shape != weight.shape[:1]:
        raise ModelError(f"row_scale is {tuple(row_scale.shape)}: expected ({len(weight)},)")


def _reference(weight: Tensor, row_scale: Tensor | None) -> Tensor:
    if row_scale is None:
        return weight.sum(0, dtype=torch.float32).div_(len(weight))
    total = weight.new_zeros(weight.shape[1], dtype=torch.float32)
    for start in range(0, len(weight), _ROWS):
        rows = slice(start, start + _ROWS)
        total += row_scale[rows].float() @ weight[rows].float()
    return total.div_(len(weight))


_ROWS = 4096
"""Rows of an int8 weight that the reference widens together."""


def _fake(weight: Tensor, row_scale: Tensor | None) -> Tensor:
    return weight.new_empty(weight.shape[1], dtype=torch.float32)


def _workspace(weight: Tensor, row_scale: Tensor | None) -> int:
    return 0 if row_scale is None else 4 * min(len(weight), _ROWS) * int(weight.shape[1])


def _cases() -> list[Case]:
    weight = draw(5000, 64) + 1
    codes = (30 * draw(5000, 64, seed=1)).clamp(-127, 127).to(torch.int8)
    return [
        Case("", (weight, None), 1e-5),
        Case("bfloat16", (weight.bfloat16(), None), 1e-5),
        Case("int8", (codes, draw(5000, seed=2).abs()), 1e-4),
    ]


_mean_row = Operator(
    schema="mean_row(Tensor weight, Tensor? row_scale) -> Tensor",
    family="mean_row",
    check=_check,
    reference=_reference,
    fake=_fake,
    cases=_cases,
    once=True,
    workspace=_workspace,
)
