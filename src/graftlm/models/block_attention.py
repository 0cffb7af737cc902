"""Chooses the attention of a model: ours, by blocks of the mask or by borders, or PyTorch's.

transformers accepts attention functions that are registered under a name. Ours replaces the one for
`scaled_dot_product_attention`. It computes each block of the mask separately, in float32. It calls
PyTorch's attention for a single token, and for a single block of 16-bit inputs if the processor has
instructions for that type; without them, a single token of 16 bits has a function of its own. That
is on a CPU. On a card PyTorch's attention runs, unless the mask holds the borders of sequences that
lie end to end: `kernels/sequence_attention.py`.
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

from graftlm._compat.attention import attention_of, can_set_attention
from graftlm.data.batch import are_borders
from graftlm.errors import ModelError
from graftlm.kernels.attention import attention, skips_blocks
from graftlm.kernels.mask_blocks import Block, blocks
from graftlm.kernels.sequence_attention import has_kernel, sequence_attention
from graftlm.models.token_attention import token_attention
from graftlm.system import fast_bfloat16

__all__ = ["attends_by_blocks", "quick_attention", "widens"]

NAME = "graftlm_sdpa"
_NARROW = (torch.bfloat16, torch.float16)
_NOT_OURS = ("position_bias", "cache", "softcap", "output_attentions")
"""Arguments of transformers' function that change what it computes."""
_DROPOUTS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
"""The names that transformers' configs use for the dropout of attention weights."""


def quick_attention(model: Any) -> bool:
    """Make a model use our attention kernel, block by block of the mask, if that is faster.

    The device of the tensors decides each call. Three
    kinds of model are not changed: those that do not call PyTorch's attention, those whose
    attention cannot be set, and those whose code refers to PyTorch's attention by name, because
    that code may do more than attention.

    Returns:
        Whether the model uses our attention now.
    """
    if attention_of(model.config) != "sdpa":
        return False
    if not can_set_attention(model) or any(map(_asks_by_name, _kinds(model))):
        return False
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return True


def attends_by_blocks(model: Any) -> bool:
    """Whether sequences laid end to end take as long as the same sequences one by one.

    This is false if `quick_attention` did not change the model, or if `_attend` calls PyTorch's
    attention: with dropout, and with values of another size than the keys.
    """
    text = model.config.get_text_config()
    others = any(getattr(text, name, None) for name in (*_DROPOUTS, "v_head_dim"))
    return attention_of(model.config) == NAME and not others


def widens(model: Any) -> bool:
    """Whether a model's attention takes keys and values in float32 for one token of 16 bits."""
    return attention_of(model.config) == NAME


def _kinds(model: Any) -> set[type]:
    """One class for each source file of the model's modules, without those of torch."""
    kinds = {type(module).__module__: type(module) for module in model.modules()}
    return {
        kind for name, kind in kinds.items() if name.partition(".")[0] not in ("torch", "graftlm")
    }


def _asks_by_name(kind: type) -> bool:
    """Whether the source code of a class names PyTorch's attention, or cannot be read."""
    try:
        source = inspect.getsource(sys.modules[kind.__module__])
    except OSError:
        return True  # installed without source: unknown, so the model is not changed
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
    """A replacement for transformers' `sdpa_attention_forward`, with the same signature."""
    if attention_mask is not None and are_borders(attention_mask):
        if dropout or any(_given(rest.get(name)) for name in _NOT_OURS):
            raise ModelError(f"{type(module).__name__} does more than attend between borders")
        window = rest.get("sliding_window") or 0
        return _between_borders(query, key, value, attention_mask, scaling, window), None
    others = (dropout, scaling, is_causal)
    if not skips_blocks(query) or dropout or any(_given(rest.get(name)) for name in _NOT_OURS):
        return _theirs(module, query, key, value, attention_mask, *others, **rest)
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    factors = (query, key, value, attention_mask)
    y: tuple[Tensor, None] = _by_blocks(module, *factors, scaling, is_causal, rest)
    return y


@torch.compiler.disable  # type: ignore[untyped-decorator] # it reads the mask
def _by_blocks(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None,
    is_causal: bool,
    rest: dict[str, Any],
) -> tuple[Tensor, None]:
    others = (0.0, scaling, is_causal)
    quick = query.dtype not in _NARROW or fast_bfloat16()  # else PyTorch's kernel
    if query.shape[2] == 1 and not quick and _one_mask(attention_mask):
        return token_attention(query, key, value, attention_mask, scaling), None
    parts = _parts(query, key, attention_mask, is_causal)
    # PyTorch computes a single token, and one block of 16-bit inputs if its kernel is fast.
    left = query.shape[2] == 1 or (query.dtype in _NARROW and quick)
    ours = len(parts) > 1 or not left
    if ours and _fits(query, key, value, attention_mask):
        key, value = (tensor[:, :, : parts[-1].stop] for tensor in (key, value))
        y = attention(query, key, value, attention_mask, scaling, parts)
        return y.transpose(1, 2).contiguous(), None
    if quick:
        return _theirs(module, query, key, value, attention_mask, *others, **rest)
    wide = (tensor.float() for tensor in (query, key, value))
    floating = attention_mask is not None and attention_mask.is_floating_point()
    mask = attention_mask.float() if floating else attention_mask  # type: ignore[union-attr]
    y, _ = _theirs(module, *wide, mask, *others, **rest)
    return y.to(query.dtype), None


def _between_borders(
    query: Tensor, key: Tensor, value: Tensor, borders: Tensor, scaling: float | None, window: int
) -> Tensor:
    """(1, H, T, D) → (1, T, H, D)."""
    known = torch.compiler.is_compiling() or skips_blocks(query)  # a proof came before compiling
    if not known and not has_kernel(query, key, value):
        raise ModelError(
            f"{query.device} has no kernel for sequences end to end in {query.dtype}, with heads "
            f"of {query.shape[-1]} numbers"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    y = sequence_attention(query, key, value, scale, borders.view(-1), window)
    return y.transpose(1, 2).contiguous()


def _parts(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool) -> tuple[Block, ...]:
    """The blocks of the mask; one block of all positions if the mask does not define any."""
    length, seen = query.shape[2], key.shape[2]
    if mask is None and causal and length > 1:  # a cache may be longer than its contents
        return (Block(0, length, True),)
    told = mask is not None and mask.dtype == torch.bool and mask.ndim == 4
    if told and mask.shape[-2:] == (length, seen) == (seen, length):  # type: ignore[union-attr]
        return blocks(mask)  # type: ignore[arg-type]
    return (Block(0, max(length, seen), False),)


def _theirs(*arguments: Any, **rest: Any) -> tuple[Tensor, None]:
    result: tuple[Tensor, None] = sdpa_attention_forward(*arguments, **rest)
    return result


def _given(argument: object) -> bool:
    return argument is not None and argument is not False


def _one_mask(mask: Tensor | None) -> bool:
    """Whether all heads have the same mask, and nothing has to be learned of it."""
    return not torch.is_grad_enabled() and (
        mask is None or (mask.ndim == 4 and mask.shape[1] == mask.shape[2] == 1)
    )


def _fits(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether `attention` supports this call, in our kernel or in the one PyTorch would choose."""
    factors = (query, key, value)
    return (
        query.dtype != torch.float64  # it computes in float32
        and query.shape[-1] == value.shape[-1]
        and all(factor.numel() and factor.stride(-1) == 1 for factor in factors)
        and (mask is None or (mask.ndim == 4 and not mask.requires_grad))
    )
