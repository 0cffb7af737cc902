"""Folding adapters into the weights (arXiv 2106.09685, section 4.1).

    W' = W + s · B A

computed in float32 and rounded once, to the type of W. The rounding is the only loss, and it is
reported: in bfloat16 it is at most 2⁻⁹ of the weight, which can exceed a small update.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import torch
from torch import Tensor, nn

from graftlm.kernels import ops
from graftlm.layers import NF4Linear
from graftlm.lora.report import tied_head
from graftlm.lora.targets import lora_modules

__all__ = ["MergeReport", "dense", "merge", "merge_adapters", "merge_weight"]

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclasses.dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        merged: names of the modules whose weight changed.
        largest_rounding: largest difference between a stored weight and its float32 value.
        untied: whether the output head had to stop sharing its weight with the token table.
    """

    merged: tuple[str, ...]
    largest_rounding: float
    untied: bool

    def __str__(self) -> str:
        text = (
            f"{len(self.merged)} modules merged; largest rounding of a weight "
            f"{self.largest_rounding:.2e}"
        )
        if self.untied:
            text += "; the output head no longer shares its weight with the token embeddings"
        return text


@torch.no_grad()
def merge_weight(
    weight: Tensor, delta: Tensor, dtype: torch.dtype | None = None
) -> tuple[Tensor, float]:
    """``weight + delta`` in float32, rounded once; and the largest error of that rounding.

    Args:
        weight: the frozen weight, any floating-point type.
        delta: float32 of the same shape.
        dtype: the type of the result; the weight's by default.
    """
    exact = weight.float() + delta
    rounded = exact.to(dtype or weight.dtype)
    return rounded, float((rounded.float() - exact).abs().max())


def merge_adapters(model: nn.Module) -> MergeReport:
    """Replace every adapted module by a plain one with the update folded in, in place.

    4-bit bases are dequantised into the type they had before quantisation. A weight that is shared
    with a module which is not adapted is copied, never changed under it;
    ``config.tie_word_embeddings`` then becomes false.
    """
    tied = tied_head(model)
    largest = 0.0
    adapted = lora_modules(model)
    for name, module in adapted.items():
        base = dense(module.base) if isinstance(module.base, NF4Linear) else module.base
        weight, rounding = merge_weight(base.weight, module.delta())  # type: ignore[arg-type]
        base.weight = nn.Parameter(weight, requires_grad=False)
        model.set_submodule(name, base)
        largest = max(largest, rounding)
    untied = tied and not tied_head(model)
    if untied:
        model.config.tie_word_embeddings = False  # type: ignore[union-attr]
    return MergeReport(tuple(adapted), largest, untied)


def merge(model: ModelT) -> ModelT:
    """Fold the adapters in, in place, and return the now plain model."""
    merge_adapters(model)
    return model


def dense(linear: NF4Linear, dtype: torch.dtype | None = None) -> nn.Linear:
    """The plain layer that computes what the 4-bit one computes."""
    weight = ops.dequantize(linear.weight4, dtype)
    plain = nn.Linear(linear.in_features, linear.out_features, linear.bias is not None, "meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if linear.bias is not None:
        plain.bias = nn.Parameter(linear.bias.detach().to(weight.dtype), requires_grad=False)
    return plain
