"""Which attention a model uses: PyTorch's, in the type that the processor multiplies fastest.

transformers lets an attention function be registered under a name. Where 16-bit products are slow,
ours takes the place of its own one for `scaled_dot_product_attention`, and calls that in float32.
"""

from __future__ import annotations

import inspect
import re
import sys
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
_NARROW = (torch.bfloat16, torch.float16)
_NOT_OURS = ("position_bias", "cache", "softcap", "output_attentions")
"""Arguments of transformers' function that change what it computes."""


def quick_attention(model: Any) -> bool:
    """Let a model compute its attention in float32, if 16 bits are slow on this processor.

    Left alone is a model that does not call PyTorch's attention, cannot be told another one, or
    whose code asks for PyTorch's by name, for it may then do something else besides.

    Returns:
        Whether it does from now on.
    """
    if fast_bfloat16() or model.config._attn_implementation != "sdpa":
        return False
    if not model._can_set_attn_implementation() or _asks_by_name(type(model)):
        return False
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return True


def _asks_by_name(kind: type) -> bool:
    """Whether the code that defines a model names PyTorch's attention, or cannot be read."""
    try:
        source = inspect.getsource(sys.modules[kind.__module__])
    except OSError:
        return True  # installed without its source: nobody can say, so it is left alone
    return re.search(r"""["']sdpa["']""", source) is not None


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
    others = (dropout, scaling, is_causal)
    narrow = query.is_cpu and query.dtype in _NARROW
    if not narrow or dropout or any(_given(rest.get(name)) for name in _NOT_OURS):
        return _theirs(module, query, key, value, attention_mask, *others, **rest)
    if not (torch.is_grad_enabled() and _fits(query, key, value, attention_mask)):
        wide = (tensor.float() for tensor in (query, key, value))
        floating = attention_mask is not None and attention_mask.is_floating_point()
        mask = attention_mask.float() if floating else attention_mask  # type: ignore[union-attr]
        y, _ = _theirs(module, *wide, mask, *others, **rest)
        return y.to(query.dtype), None
    length = query.shape[2]
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    is_causal = is_causal and attention_mask is None and length > 1
    if is_causal:  # a cache may have room for more than there is
        key, value = key[:, :, :length], value[:, :, :length]
    y = attention(query, key, value, attention_mask, scaling, is_causal)
    return y.transpose(1, 2).contiguous(), None


def _theirs(*arguments: Any, **rest: Any) -> tuple[Tensor, None]:
    result: tuple[Tensor, None] = sdpa_attention_forward(*arguments, **rest)
    return result


def _given(argument: object) -> bool:
    return argument is not None and argument is not False


def _fits(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether PyTorch would choose, in float32, the kernel that `attention` calls."""
    factors = (query, key, value)
    return (
        query.shape[-1] == value.shape[-1]
        and all(factor.numel() and factor.stride(-1) == 1 for factor in factors)
        and (mask is None or (mask.ndim == 4 and not mask.requires_grad))
    )
