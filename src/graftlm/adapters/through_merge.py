"""Training through the merge: the forward pass uses the merged weight in its storage format.

    Q̂ = Q(W + s · B A)            W [out, in], the original weight, read from the disk
    y = x Q̂ᵀ                      the value: that of the merged layer, to the bit
    dx = dy Q̂
    dA = (s · dy B)ᵀ x             dB = s · dyᵀ (x Aᵀ)

Q rounds to the format, here NF4, and has no useful derivative. The straight-through estimator
(arXiv 1308.3432) takes dQ/dW for the identity, so A and B get LoRA's ordinary gradient, at the
merged weight. The update itself is not added to y: it is in Q̂. So the checkpoint that a merge
writes is the model that was trained and measured.

The layer's stored weight is made anew when A or B have changed since: once per optimiser step,
after a checkpoint was loaded, and when the adapter is switched off, which gives Q(W). W is one
tensor in memory at a time.

    Q̂  base.frozen        W  ThroughMerge.read()        Q  the format's `quantize`
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from graftlm._compat.fake import is_fake
from graftlm._compat.torch_objects import is_view
from graftlm.errors import ConfigError
from graftlm.frozen.linear import FrozenLinear
from graftlm.frozen.weight import FrozenWeight, WeightSettings
from graftlm.kernels.factor_gradient import factor_gradient
from graftlm.kernels.lora_linear import factor_type

if TYPE_CHECKING:
    from graftlm.adapters.lora_linear import LoRALinear

__all__ = ["ThroughMerge", "merged_and_stored"]


class ThroughMerge:
    """How one adapter trains through its merge.

    Args:
        read: returns the original weight (out, in), of the type that the base was stored from.
    """

    def __init__(self, read: Callable[[], Tensor]) -> None:
        self._read = read
        self._seen: list[Tensor] | None = None
        """The factors of the stored weight; empty if it is without the update."""

    def product(self, adapter: LoRALinear, base: nn.Module, x: Tensor) -> Tensor:
        """(..., in) → (..., out) by the merged weight; differentiable in x, A and B."""
        self.renew(adapter, base)
        y: Tensor = base(x)
        if not adapter.enabled:
            return y
        if is_view(y) or (y.is_leaf and y.requires_grad):  # autograd forbids writing to these
            y = y.clone()
        A, B = adapter.factors()
        through: Tensor = _StraightThrough.apply(  # type: ignore[no-untyped-call]
            y, x, A, B, adapter.scaling
        )
        return through

    @torch.no_grad()
    def renew(self, adapter: LoRALinear, base: nn.Module) -> None:
        """Store the merged weight in ``base``, if the adapter has changed since the last time."""
        assert isinstance(base, FrozenLinear)
        factors = list(adapter.adapter_parameters().values()) if adapter.enabled else []
        if self._is_of(factors):
            return
        frozen, weight = base.frozen, self._read()
        if adapter.enabled:
            stored = merged_and_stored(adapter, weight, frozen)
        else:
            stored = type(frozen).quantize(weight, _settings(frozen))
        for name, tensor in stored.tensors().items():
            base.get_buffer(name).copy_(tensor)
        self._seen = [factor.detach().clone() for factor in factors]

    def _is_of(self, factors: list[nn.Parameter]) -> bool:
        """Whether the stored weight is that of ``factors``.

        Their values are compared: a fused optimiser does not raise the version of a tensor.
        """
        seen = self._seen
        if seen is None or len(seen) != len(factors) or any(map(is_fake, factors)):
            return False
        return all(torch.equal(one, other) for one, other in zip(seen, factors, strict=True))


def merged_and_stored(adapter: LoRALinear, weight: Tensor, like: FrozenWeight) -> FrozenWeight:
    """Q(W + s · B A): the sum in float32, stored with the format and settings of ``like``."""
    exact = adapter.merged(weight)
    return type(like).quantize(exact, _settings(like)).of_type(like.dtype)


def _settings(frozen: FrozenWeight) -> WeightSettings:
    return WeightSettings(**frozen.settings())


def require_mergeable(adapter: nn.Module, name: str, format: str) -> None:
    """Refuse an adapter that cannot train through a merge into ``format``.

    Raises:
        ConfigError: the message names the module and says why.
    """
    base = getattr(adapter, "base", None)
    why = None
    if not isinstance(base, FrozenLinear) or base.frozen.format != format:
        why = f"its base is not held in {format}"
    elif not getattr(adapter, "trains_through_merge", False):
        why = f"{type(adapter).__name__} has no such form"
    elif getattr(adapter, "dropout", 0.0):
        why = "it has dropout, which a merged weight cannot have"
    if why:
        raise ConfigError(f"lora.merge_aware={format}: {name} cannot train through a merge: {why}")


class _StraightThrough(torch.autograd.Function):
    """y unchanged; the gradients of A and B as if y contained their update."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
        ctx.scaling, ctx.factor = scaling, factor_type(x)
        ctx.save_for_backward(x, A, B)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, A, B = ctx.saved_tensors
        rows = x.reshape(-1, x.shape[-1]).to(ctx.factor)
        d = dy.reshape(-1, dy.shape[-1]).to(ctx.factor)
        dA = dB = None
        if ctx.needs_input_grad[2]:
            v = (d @ B.to(ctx.factor)).mul_(ctx.scaling)
            dA = factor_gradient(v, rows).to(A.dtype)
        if ctx.needs_input_grad[3]:
            u = rows @ A.to(ctx.factor).T
            dB = factor_gradient(u, d, ctx.scaling, turned=True).to(B.dtype)
        return dy, None, dA, dB, None
