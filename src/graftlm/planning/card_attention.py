"""Attention as a GPU computes it, for a trace on a machine without one.

For a fake tensor PyTorch chooses the plain products, which keep every score. A GPU has two kernels
that keep none: flash attention (16 bits, no mask) and memory-efficient attention. Both have shapes
and a gradient without a GPU, so the traced model calls them by name. A model whose code calls
PyTorch's attention itself keeps the plain products; its plan is too large.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from graftlm._compat.attention import attention_of, can_set_attention
from graftlm._compat.torch_attention import efficient_attention, flash_attention
from graftlm.models.block_attention import NAME as OURS

__all__ = ["attend_as_a_card"]

NAME = "graftlm_planned_card"
_NARROW = (torch.float16, torch.bfloat16)


def attend_as_a_card(model: Any) -> None:
    """Let a fake model call a GPU's kernels, if it calls PyTorch's attention by transformers."""
    if attention_of(model.config) in ("sdpa", OURS) and can_set_attention(model):
        AttentionInterface.register(NAME, _attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = causal and attention_mask is None and query.shape[2] > 1
    if attention_mask is None and query.dtype in _NARROW and query.shape[-1] == value.shape[-1]:
        y = flash_attention(query, key, value, dropout, causal, False, scale=scaling)[0]
        return y.transpose(1, 2).contiguous(), None
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, 1) if groups > 1 else t for t in (key, value))
    bias = attention_mask
    if bias is not None:
        shape = (*query.shape[:3], key.shape[2])
        kind = {"dtype": query.dtype, "device": query.device}
        bias = torch.zeros(bias.shape, **kind).expand(shape)  # type: ignore[call-overload]
    y = efficient_attention(
        query, key, value, bias, torch.is_grad_enabled(), dropout, causal, scale=scaling
    )[0]
    return y.transpose(1, 2).contiguous(), None
