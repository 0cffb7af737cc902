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
from graftlm.kernels.crossing import WEIGHT_TYPES
from graftlm.kernels.define import define

__all__ = ["mean_row"]

_known: Any = WeakIdKeyDictionary()


def mean_row(weight: Tensor, row_scale: Tensor | None = None) -> Tensor:
    """The mean of all rows, by the native kernel.

    Args:
        weight: (V, D) of a type that `graftlm.kernels.native.takes_rows` has accepted.
        row_scale: (V,): row r is that times what ``weight`` holds.

    Returns:
        (D,) float32; not to be written to.
    """
    if type(weight) not in (Tensor, nn.Parameter) or weight.is_inference():
        mean: Tensor = _mean_row(weight, row_scale)  # nobody can say whether it was changed
        return mean
    versions = (weight._version, None if row_scale is None else row_scale._version)
    known = _known.get(weight)
    if known is None or known[0] is not row_scale or known[1] != versions:
        known = _known[weight] = (row_scale, versions, _mean_row(weight, row_scale))
    found: Tensor = known[2]
    return found


def _run(weight: Tensor, row_scale: Tensor | None) -> Tensor:
    weight = weight.detach().contiguous()
    row_scale = None if row_scale is None else row_scale.contiguous()
    mean = torch.empty(weight.shape[1])
    native.kernels().mean_row(
        weight.data_ptr(),
        WEIGHT_TYPES[weight.dtype],
        0 if row_scale is None else row_scale.data_ptr(),
        *weight.shape,
        mean.data_ptr(),
        torch.get_num_threads(),
    )
    return mean


def _fake(weight: Tensor, row_scale: Tensor | None) -> Tensor:
    return weight.new_empty(weight.shape[1], dtype=torch.float32)


_mean_row = define("mean_row(Tensor weight, Tensor? row_scale) -> Tensor", _run, _fake)
