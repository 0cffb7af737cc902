"""LoRA on the weight of a router, or of another module that holds one matrix of its own.

    W' = W + s · B A        s = alpha / r, or alpha / √r

W [out, in] is the parameter `weight` of a module that is no linear layer: a router chooses experts
by it. The module's own code runs with W', which is small. PEFT adapts it when `target_parameters`
names it.

    W  base.weight      A  lora_A [r, in]      B  lora_B [out, r]      r  rank      s  scaling
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from graftlm.adapters.adapter import Adapter, register_adapter
from graftlm.adapters.layers import linear_shape
from graftlm.errors import ModelError
from graftlm.frozen.experts import ExpertStack
from graftlm.frozen.stored_weight import StoredWeight

__all__ = ["LoRARouter", "by_parameter", "is_router"]


def is_router(module: nn.Module) -> bool:
    """Whether ``module`` routes by a weight [out, in] of its own."""
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    routes = any(word in type(module).__name__.lower() for word in ("router", "gate", "gating"))
    held = isinstance(module, nn.Embedding | ExpertStack | StoredWeight)
    return (
        routes
        and weight is not None
        and weight.ndim == 2
        and not held
        and linear_shape(module) is None
    )


def by_parameter(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """The parameters that `target_parameters` can name, and the module of each.

    Args:
        modules: from `adaptable_modules`.
    """
    stacks = {name: name for name, module in modules.items() if isinstance(module, ExpertStack)}
    routers = {f"{name}.weight": name for name, module in modules.items() if is_router(module)}
    return stacks | routers


@register_adapter
class LoRARouter(Adapter):
    """A frozen router with a trainable low-rank update of its weight."""

    variant = "lora"
    beside = "router"
    peft_keys: ClassVar = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}
    lora_A: nn.Parameter  # noqa: N815, the name in checkpoints
    lora_B: nn.Parameter  # noqa: N815

    @classmethod
    def adapts(cls, module: nn.Module) -> bool:
        """Routers. They have no dropout: the input decides which experts run."""
        return is_router(module)

    @classmethod
    def shapes(cls, base: nn.Module, rank: int) -> dict[str, tuple[int, ...]]:
        """A [r, in] and B [out, r]."""
        rows, columns = base.get_parameter("weight").shape
        return {"lora_A": (rank, columns), "lora_B": (rows, rank)}

    def reset(self) -> None:
        """Draw A as torch draws a linear layer; set B to zero."""
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """What the router gives, with its update if it is enabled."""
        if not self.enabled:
            return self.base(*arguments, **named)
        return self.product(self.base, *arguments, **named)

    def product(self, base: nn.Module, *arguments: Any, **named: Any) -> Any:
        """The router's answer, whatever it consists of."""
        W = base.get_parameter("weight")
        changed = (W.float() + (self.lora_B @ self.lora_A) * self.scaling).to(W.dtype)
        return functional_call(base, {"weight": changed}, arguments, named)

    def added(self, base: nn.Module, y: Tensor, x: Tensor, *others: Any) -> Tensor:
        """Refuse: answers of a router cannot be added.

        Raises:
            ModelError: always.
        """
        raise ModelError(
            f"two adapters are active on one router ({type(base).__name__}), and what it says "
            "cannot be added: activate one of them (graftlm.adapters.activate)"
        )

    @torch.no_grad()
    def delta(self, weight: Tensor | None = None) -> Tensor:
        """``s · B A`` in float32: [out, in]."""
        return (self.lora_B @ self.lora_A).mul_(self.scaling)

    def __getattr__(self, name: str) -> Any:
        """Look up missing attributes in the base: a model's code reads its router's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)
