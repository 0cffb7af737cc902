"""A module of the base that trains whole, beside the adapters: PEFT's `modules_to_save`.

    y = f(x; θ)         θ: a float32 copy of the module's parameters, all of them or the named ones

The frozen module keeps its values, so that the copy can be switched off. θ is rounded to the type
of the frozen parameters before each use, as a merge rounds it: what trains is what is shipped.
Memory: 4 bytes a parameter for θ, 4 for its gradient, 8 for AdamW's moments.

Where table and head are one weight, the copy of one can follow that of the other (`leader`): one
parameter, two modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from graftlm.adapters.adapter import DEFAULT, Adapter
from graftlm.frozen.embedding import FrozenEmbedding, FrozenOutput
from graftlm.frozen.experts import FrozenExperts
from graftlm.frozen.stored_weight import StoredWeight
from graftlm.models.fused import OutputLinear

__all__ = ["TrainedModule", "untrainable"]

PREFIX = "trained:"


class TrainedModule(Adapter):
    """A frozen module, and a trained copy of its parameters that stands for them.

    Args:
        base: the module; none of its trained parameters may be in a weight format.
        only: the parameters to train; by default all.
        name: the adapter's name.
        leader: the copy whose ``weight`` this one shares.
    """

    variant = "trained"
    beside = "module with parameters"
    peft_keys: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        base: nn.Module,
        only: Sequence[str] = (),
        name: str = DEFAULT,
        leader: TrainedModule | None = None,
    ) -> None:
        own = [key for key, _ in base.named_parameters() if not only or key in only]
        self._own_parts = tuple(own)
        self._leader = [leader] if leader is not None else []  # a list, so that it is no submodule
        super().__init__(base, 0, 0.0, name=name)
        self.partial = bool(only)

    @classmethod
    def adapts(cls, module: nn.Module) -> bool:
        """Modules with parameters."""
        return next(module.parameters(), None) is not None

    @classmethod
    def shapes(cls, base: nn.Module, rank: int) -> dict[str, tuple[int, ...]]:
        """None: the copies are made by `reset`."""
        return {}

    def reset(self) -> None:
        """Copy the frozen parameters."""
        for part in self._own_parts:
            if not (self._leader and part == "weight"):
                frozen = self.base.get_parameter(part).detach()
                copy = torch.empty_like(frozen, dtype=torch.float32).copy_(frozen)
                self.register_parameter(_attribute(part), nn.Parameter(copy))

    @property
    def is_output_layer(self) -> bool:
        """Whether it computes ``x Wᵀ + b`` by `weight` and `bias`, for `models/output_head.py`."""
        return type(self.base) in (nn.Linear, OutputLinear)

    def trained(self, part: str) -> nn.Parameter:
        """The trained copy of a parameter."""
        if self._leader and part == "weight":
            return self._leader[0].trained(part)
        return cast("nn.Parameter", getattr(self, _attribute(part)))

    @property
    def follows(self) -> bool:
        """Whether its parameter is that of another module."""
        return bool(self._leader)

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """The copies that this module owns."""
        followed = "weight" if self._leader else None
        return {_attribute(p): self.trained(p) for p in self._own_parts if p != followed}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output, by the trained parameters while they are on."""
        if not self.enabled:
            return self.base(*args, **kwargs)
        return functional_call(self.base, self._values(), args, kwargs)

    def product(self, base: nn.Module, x: Tensor, *more: Any) -> Tensor:
        """The output of ``base`` by the trained parameters."""
        y: Tensor = functional_call(base, self._values(base), (x, *more))
        return y

    def added(self, base: nn.Module, y: Tensor, x: Tensor, *more: Any) -> Tensor:
        """``y`` and the change of the module's output."""
        change: Tensor = self.product(base, x) - base(x)
        return y + change

    def delta(self, weight: Tensor) -> Tensor:
        """The change of ``weight``."""
        return self.trained("weight").detach().float() - weight.float()

    def parts(self) -> tuple[str, ...]:
        """The trained parameters."""
        return self._own_parts

    def replaced(self, part: str, tensor: Tensor) -> Tensor:
        """The trained copy."""
        return self.trained(part).detach().float()

    def describe(self) -> str:
        """What it trains, for a report."""
        return " and ".join(self._own_parts) if self.partial else "whole"

    def peft_state(self) -> dict[str, Tensor]:
        """The copies under the names of the parameters, as PEFT stores them; a shared one twice."""
        state = {part: self.trained(part).detach() for part in self._own_parts}
        return {part: copy.clone() for part, copy in state.items()} if self.follows else state

    @torch.no_grad()
    def load_peft_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy in; of a shared weight there is one."""
        for attribute, parameter in self.adapter_parameters().items():
            value = state[attribute.removeprefix(PREFIX).replace(":", ".")]
            if parameter.is_meta:
                setattr(self, attribute, nn.Parameter(value.float()))
            else:
                parameter.copy_(value)

    @property
    def weight(self) -> Tensor:
        """The weight in use, for model code that reads it."""
        return self._in_use("weight")

    @property
    def bias(self) -> Tensor | None:
        """The bias in use."""
        if getattr(self.base, "bias", None) is None:
            return None
        return self._in_use("bias")

    def __getattr__(self, name: str) -> Any:
        """Look up missing attributes in the base: sizes and settings."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def _in_use(self, part: str) -> Tensor:
        frozen = self.base.get_parameter(part)
        if not self.enabled or part not in self._own_parts:
            return frozen
        return self.trained(part).to(frozen.dtype)

    def _values(self, base: nn.Module | None = None) -> dict[str, Tensor]:
        """The trained parameters in the types of the frozen ones."""
        like = self.base if base is None else base
        return {p: self.trained(p).to(like.get_parameter(p).dtype) for p in self._own_parts}

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"{self.name}: trained {', '.join(self._own_parts)}"


def untrainable(module: nn.Module) -> str | None:
    """Why a module cannot train whole; ``None`` if it can."""
    for part in module.modules():
        if isinstance(part, StoredWeight | FrozenEmbedding | FrozenOutput):
            stored = part if isinstance(part, StoredWeight) else part.rows
            return (
                f"its weights are held in {stored.frozen.format}: train it under method lora, or "
                "with model.embeddings=keep, where they are in 16 or 32 bits"
            )
        if isinstance(part, FrozenExperts):
            return "its experts are held in a weight format: train it under method lora"
        if isinstance(part, Adapter):
            return "it has an adapter: leave it out of the targets"
    if next(module.parameters(), None) is None:
        return "it has no parameters"
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return "it is a list of modules: name those"
    return None


def _attribute(part: str) -> str:
    return PREFIX + part.replace(".", ":")
