"""Which attention a model uses: PyTorch's, in the type that the processor multiplies fastest.

transformers lets an attention function be registered under a name; ours hands over to its own one
for `scaled_dot_product_attention` wherever that is quick.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from graftlm.kernels.attention import attention
from graftlm.system import fast_bfloat16

__all__ = ["quick_attention"]

NAME = "graftlm_sdpa"
_NOT_OURS = ("position_bias", "cache", "softcap", "output_attentions")
"""Arguments of transformers' function that change what it computes."""


def quick_attention(model: Any) -> None:
    """Let a model that calls PyTorch's attention call it in float32 where 16 bits are slow."""
    if model.config._attn_implementation != "sdpa":
        return
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
    **rest: Any,
) -> tuple[Tensor, None]:
    """As `sdpa_attention_forward`."""
    plain = not dropout and all(not rest.get(name) for name in _NOT_OURS)
    if not (plain and _slow(query) and query.shape[-1] == value.shape[-1]):
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **rest
        )
        return result
    length = query.shape[2]
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    is_causal = is_causal and attention_mask is None and length > 1
    if is_causal:  # a cache may have room for more than there is
        key, value = key[:, :, :length], value[:, :, :length]
    y = attention(query, key, value, attention_mask, scaling, is_causal)
    return y.transpose(1, 2).contiguous(), None


def _slow(query: Tensor) -> bool:
    """Whether products of this type are slower here than in float32."""
    narrow = query.dtype in (torch.bfloat16, torch.float16)
    return query.is_cpu and narrow and not (query.dtype == torch.bfloat16 and fast_bfloat16())
