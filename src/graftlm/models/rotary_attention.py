"""The attention layer of Llama and its like, with rotary embedding in one pass.

    q, k, v = norm(W_q x), norm(W_k x), W_v x           norms in some models only
    y       = W_o attention(rotary(q), rotary(k), v)

transformers calls rotary embedding as a function of each model's file, so the layer that calls it
is what can be replaced. The attention in the middle is still the one that the model's config names.

Equal means: for the same projections, angles, cache and other arguments, the layer passes the same
bits to the attention function and to the cache as the original, in float32 and in bfloat16, in
training and in evaluation. A replaced layer is also of the original's class: by it transformers
finds the layers whose attention weights `output_attentions` asks for.
"""

from __future__ import annotations

import functools
import inspect
import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from graftlm._compat.attention import attention_of, attention_set
from graftlm.kernels.rotary import has_kernel, rotary
from graftlm.models.replace_proven import KnownOutput, replace_proven, swapped

__all__ = ["RotaryAttention", "fuse_rotary"]

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj")
NORMS = ("q_norm", "k_norm")
TAKES = {"hidden_states", "position_embeddings", "attention_mask", "past_key_values", "kwargs"}
"""The arguments of a layer that can be replaced."""
ALSO = ("sliding_window", "softcap")
"""What some models pass to the attention function besides dropout and scale."""
_PROOF = "graftlm_proof"


def fuse_rotary(model: nn.Module) -> list[str]:
    """Replace attention layers, in place; the parts keep their names. Returns the layers' names."""
    return replace_proven(model, _is_attention, _also, RotaryAttention)


class RotaryAttention(nn.Module):
    """Attention with the parts and settings of a layer of transformers.

    Attributes:
        q_proj: (..., D) → (..., H·d); ``k_proj`` and ``v_proj`` likewise, ``o_proj`` back.
        q_norm: (..., d) → (..., d), in models that have norms; ``k_norm`` likewise.
        also: names of attributes that are passed to the attention function too.
    """

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module
    config: Any
    head_dim: int
    scaling: float
    attention_dropout: float
    layer_idx: int

    def __init__(self, theirs: nn.Module, also: dict[str, Any]) -> None:
        super().__init__()
        kind: Any = type(theirs)
        self.__class__ = _also_a(kind)
        for name, value in vars(theirs).items():
            if name not in vars(self):
                setattr(self, name, value)
        for name, child in theirs.named_children():
            setattr(self, name, child)
        for name, value in also.items():
            setattr(self, name, value)
        self.also = tuple(also)
        # What runs if the user sets the attention to "eager".
        self.eager = getattr(
            sys.modules[type(theirs).__module__], "eager_attention_forward", _no_eager
        )

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copy and pickle by the original's class: the joint one has no name in a module."""
        return _empty, (type(self).__mro__[2],), self.__dict__

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, L, D) → (B, L, D), and the weights of attention where the function gives them."""
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        q, k, v = (
            projection(hidden_states).view(shape)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # (B, H, L, d)
        if position_embeddings is not None:  # a model may have no positions (Granite 4)
            q, k = (_turned(t, *position_embeddings) for t in (q, k))
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        name = attention_of(self.config) or "eager"
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, self.eager)
        y, weights = attend(
            self,
            q,
            k,
            v,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **{name: getattr(self, name) for name in self.also},
            **kwargs,
        )
        return self.o_proj(y.reshape(*shape[:-2], -1).contiguous()), weights


@functools.cache
def _also_a(kind: type[nn.Module]) -> type[RotaryAttention]:
    """Our layer as one of ``kind``, too."""
    return type(RotaryAttention.__name__, (RotaryAttention, kind), {})


def _empty(kind: Any) -> RotaryAttention:
    cls = _also_a(kind)
    return cls.__new__(cls)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding; where no kernel does it, the operations of transformers, to the bit.

    Angles for the first part of a head turn that part (GLM).
    """
    turned = cos.shape[-1]
    if turned < x.shape[-1]:
        return torch.cat((_turned(x[..., :turned].contiguous(), cos, sin), x[..., turned:]), -1)
    if has_kernel(x, cos, sin):
        return rotary(x, cos, sin)
    half, y = x.shape[-1] // 2, x * cos.unsqueeze(1)
    return y + torch.cat((-x[..., half:], x[..., :half]), -1) * sin.unsqueeze(1)


def _no_eager(module: nn.Module, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    raise NotImplementedError(f"{type(module).__name__} has no eager attention: set another")


def _is_attention(module: nn.Module) -> bool:
    children = {name for name, _ in module.named_children()}
    return (
        children in (set(LINEARS), {*LINEARS, *NORMS})
        and not isinstance(module, RotaryAttention)
        and not [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        and isinstance(getattr(module, "head_dim", None), int)
        and hasattr(module, "config")
        and set(inspect.signature(type(module).forward).parameters) >= TAKES
    )


def _also(theirs: nn.Module) -> dict[str, Any] | None:
    """What the layer passes to the attention function, of `ALSO`; ``None`` if it is not as ours."""
    wanted = _seen(theirs)
    if wanted is None:
        return None
    first = wanted[0]["passed"]
    also = {name: first[name] for name in ALSO if name in first}
    ours = RotaryAttention(theirs, also).train(theirs.training)
    if not _same(_seen(ours), wanted):
        return None
    # A layer that turns a part of each head, or none, is asked with such angles, too.
    others = ((_seen(theirs, parts), parts) for parts in (2, 0))
    same = (wanted is None or _same(_seen(ours, parts), wanted) for wanted, parts in others)
    return also if all(same) else None


class _Seen(dict[str, Any]):
    """What a layer gave to the cache and to the attention function, and its result."""

    def update(self, k: Tensor, v: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The method of a cache."""
        self["cached"] = (k, v, rest, named)
        return 2 * k, 3 * v


def _attend(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, *, seen: _Seen, **passed: Any
) -> tuple[Tensor, None]:
    """The attention function of the proof."""
    seen["attended"], seen["passed"] = (q, k, v, mask), passed
    return (5 * q).transpose(1, 2).contiguous(), None


def _seen(layer: Any, parts: int = 1) -> list[_Seen] | None:
    """What ``layer`` does with known numbers; ``None`` if it fails.

    ``parts``: the angles are for one of so many parts of a head; 0: there are none.
    """
    training, found = layer.training, []
    try:
        for dtype in (torch.float32, torch.bfloat16):
            for mode in (True, False):
                layer.train(mode)
                found.append(_run(layer, dtype, parts))
    except (TypeError, AttributeError, RuntimeError, ValueError, IndexError, KeyError):
        return None  # it uses its parts or its arguments in another way
    finally:
        layer.train(training)
    return found


def _run(layer: Any, dtype: torch.dtype, parts_of_head: int) -> _Seen:
    seed, size = torch.Generator().manual_seed(0), layer.head_dim

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=seed).to(dtype)

    x, angles = draw(2, 3, layer.q_proj.in_features), None
    if parts_of_head:
        turned = size // parts_of_head
        angles = draw(2, 3, turned), draw(2, 3, turned)
    parts: dict[str, Any] = {"o_proj": nn.Identity()}
    for name in LINEARS[:3]:
        parts[name] = KnownOutput(x, draw(2, 3, getattr(layer, name).out_features))
    for name in NORMS:
        if hasattr(layer, name):
            parts[name] = _Scaled(draw(size))
    seen, mask = _Seen(), draw(2, 1, 3, 3)
    AttentionInterface.register(_PROOF, _attend)
    with swapped(layer, config=attention_set(layer.config, _PROOF), **parts):
        seen["result"] = layer(
            hidden_states=x,
            position_embeddings=angles,
            attention_mask=mask,
            past_key_values=seen,
            seen=seen,  # as any argument that a layer hands on
        )
    return seen


class _Scaled(nn.Module):
    """Replaces a norm in the proof: another factor for each feature."""

    def __init__(self, factors: Tensor) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors


def _same(ours: Any, theirs: Any) -> bool:
    """Whether both hold equal values, tensors to the bit."""
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, Tensor):
        return ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(_same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    return bool(ours == theirs)
