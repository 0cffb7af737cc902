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
from transformers.pytorch_utils import Conv1D

from graftlm.adapters.report import tied_head
from graftlm.adapters.targets import base_modules, lora_modules
from graftlm.frozen.nf4.linear import NF4Linear
from graftlm.kernels import ops
from graftlm.models.capabilities import forget

__all__ = ["MergeReport", "dequantize_layers", "merge", "merge_adapters", "merge_weight"]

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
    """Fold every update into its weight, in place.

    What is left is a plain transformers model, but for embeddings in 8 bits. All 4-bit layers are
    dequantised, into the type the model computes in. A weight shared with a module which is not
    adapted is copied, never changed under it; ``config.tie_word_embeddings`` then becomes false.
    """
    dequantize_layers(model)
    tied = tied_head(model)
    largest = 0.0
    adapted = lora_modules(model)
    for name, module in adapted.items():
        weight, rounding = merge_weight(module.weight, module.delta())
        module.base.weight = nn.Parameter(weight, requires_grad=False)
        model.set_submodule(name, module.base)
        largest = max(largest, rounding)
    forget(model)
    untied = tied and not tied_head(model)
    if untied:
        model.config.tie_word_embeddings = False  # type: ignore[union-attr]
    return MergeReport(tuple(adapted), largest, untied)


def merge(model: ModelT) -> ModelT:
    """Fold the adapters in, in place, and return the now plain model."""
    merge_adapters(model)
    return model


def dequantize_layers(model: nn.Module) -> None:
    """Replace every 4-bit layer by the layer the model class has there, in place."""
    stored = {name: m for name, m in model.named_modules() if isinstance(m, NF4Linear)}
    if not stored:
        return
    adapted = lora_modules(model)
    with torch.device("meta"):
        original = base_modules(type(model)(model.config))
    for name, layer in stored.items():
        bare = name.removesuffix(".base") if name.removesuffix(".base") in adapted else name
        plain = original[bare]
        weight = ops.dequantize(layer.weight4)
        if isinstance(plain, Conv1D):
            weight = weight.T.contiguous()
        plain.weight = nn.Parameter(weight, requires_grad=False)
        plain.bias = layer.bias  # type: ignore[assignment]
        plain.train(layer.training)
        model.set_submodule(name, plain)
