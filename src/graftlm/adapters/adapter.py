"""The contract of an adapter: a frozen module with a small trained update.

    y = base(x) + update(x)              while it is on
    W' = W + delta(W)                    folded into the base's weight: the same function

A variant (LoRA, DoRA, …) is one or more subclasses with the same ``variant``: one for linear
layers, one for embedding tables. A subclass defines which modules it can adapt (`adapts`), which
parameters it trains (`shapes`, `reset`), what they compute (`product`, `added`, `delta`) and their
names in PEFT (`peft_keys`, `peft_config`). `register_adapter` registers the variant. All other code
uses this contract and contains no variant's name.
"""

from __future__ import annotations

import abc
import importlib.metadata
import itertools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from graftlm.errors import ConfigError, near_matches
from graftlm.registry import same_class

__all__ = [
    "DEFAULT",
    "Adapter",
    "adapter_class",
    "adapter_classes",
    "adapter_scaling",
    "register_adapter",
    "variants",
]

DEFAULT = "default"
ClassT = TypeVar("ClassT", bound="type[Adapter]")
ENTRY_POINTS = "graftlm.adapters"
"""The group of entry points under which an installed package names a class of adapter."""

_registered: dict[str, list[type[Adapter]]] = {}


class Adapter(nn.Module, abc.ABC):
    """A frozen module with a small trained update.

    The parameters are always float32, because 16 bits would lose small optimiser steps to rounding.
    They are initialised from torch's global generator: seed it before you create adapters.

    Args:
        base: the module to adapt.
        rank: r, the inner dimension of the update; 0 if the update is not of low rank.
        alpha: numerator of the scaling.
        dropout: probability of dropping an input of the update while training.
        use_rslora: scale by alpha / √r instead of alpha / r.
        name: the adapter's name, because a base may have several.

    Attributes:
        enabled: whether the update is applied. If not, the module computes the same as its base.
        init: the values it began with, as `lora.init` names them.
        kept: attributes of parameters that do not train.

    Raises:
        TypeError: the variant cannot adapt ``base``.
    """

    variant: ClassVar[str]
    """Its name in `lora.variant`."""
    beside: ClassVar[str]
    """The kind of module it adapts, for messages: a `linear layer`, …"""
    peft_keys: ClassVar[Mapping[str, str]]
    """For each trained parameter's attribute, the text after the module's name in PEFT's file."""
    peft_config: ClassVar[Mapping[str, Any]] = {"peft_type": "LORA"}
    """The entries of adapter_config.json that distinguish this variant from others."""

    base: nn.Module

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        use_rslora: bool = False,
        name: str = DEFAULT,
    ) -> None:
        super().__init__()
        if not self.adapts(base):
            raise TypeError(f"{type(base).__name__} is not a {self.beside}")
        self.rank, self.alpha, self.dropout, self.use_rslora = rank, alpha, dropout, use_rslora
        self.scaling = adapter_scaling(rank, alpha, use_rslora) if rank else 1.0
        self.name, self.enabled, self.init = name, True, "default"
        self.kept: frozenset[str] = frozenset()
        self.base = base
        weight = _tensor(base)
        # Drawn on the CPU, a seed gives the same adapter on every device.
        device = weight.device if weight.is_meta else torch.device("cpu")
        for attribute, shape in self.shapes(base, rank).items():
            empty = torch.empty(shape, dtype=torch.float32, device=device)
            self.register_parameter(attribute, nn.Parameter(empty))
        self.reset()
        if weight.device != device:
            for attribute, drawn in list(self.named_parameters(recurse=False)):
                setattr(self, attribute, nn.Parameter(drawn.detach().to(weight.device)))

    @classmethod
    @abc.abstractmethod
    def adapts(cls, module: nn.Module) -> bool:
        """Whether this class can adapt ``module``."""

    @classmethod
    @abc.abstractmethod
    def shapes(cls, base: nn.Module, rank: int) -> dict[str, tuple[int, ...]]:
        """The shape of each trained parameter, by its attribute, in the order of `peft_keys`."""

    @abc.abstractmethod
    def reset(self) -> None:
        """Initialise the parameters such that the update is zero."""

    @abc.abstractmethod
    def product(self, base: nn.Module, x: Tensor) -> Tensor:
        """``base(x) + update(x)`` in the base's output type."""

    @abc.abstractmethod
    def added(self, base: nn.Module, y: Tensor, x: Tensor) -> Tensor:
        """``y + update(x)`` in the type of ``y``, for several adapters on the same base.

        Args:
            base: the frozen module.
            y: the output of the base and other adapters for ``x``; may be changed in place.
            x: the module's input.
        """

    @abc.abstractmethod
    def delta(self, weight: Tensor) -> Tensor:
        """The change of ``weight`` in a merge, in float32.

        Args:
            weight: the frozen weight: [out, in] for a linear layer in any storage, [vocab, dim]
                for a table.
        """

    def merged(self, weight: Tensor) -> Tensor:
        """``weight`` plus the update, in float32; the caller rounds once."""
        return weight.float() + self.delta(weight)

    def parts(self) -> tuple[str, ...]:
        """The names, in the base, of the tensors that a merge changes."""
        return ("weight",)

    @property
    def follows(self) -> bool:
        """Whether its parameter is that of another module, so that both merge to one weight."""
        return False

    def replaced(self, part: str, tensor: Tensor) -> Tensor | None:
        """What a merge puts in the place of a tensor of the base, in float32.

        Args:
            part: one of `parts`.
            tensor: the base's, in its own layout.

        Returns:
            The new tensor; ``None`` where `delta` is added to the weight.
        """
        return None

    def forward(self, x: Tensor) -> Tensor:
        """The base's output for ``x``, plus the update if it is enabled."""
        if self.enabled:
            return self.product(self.base, x)
        return self.without(x)

    def without(self, x: Tensor) -> Tensor:
        """The base's output for ``x``."""
        y: Tensor = self.base(x)
        return y

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by attribute, in a fixed order."""
        return {attribute: getattr(self, attribute) for attribute in self.peft_keys}

    @property
    def saved_rank(self) -> int:
        """The rank in PEFT's file, which may hold more than trains."""
        return self.rank

    @property
    def saved_alpha(self) -> float:
        """The alpha that gives `saved_rank` the adapter's scaling."""
        ratio = self.saved_rank / self.rank
        return self.alpha * (math.sqrt(ratio) if self.use_rslora else ratio)

    def peft_state(self) -> dict[str, Tensor]:
        """The trained tensors by the end of their key in PEFT's file."""
        return {key: getattr(self, name).detach() for name, key in self.peft_keys.items()}

    @classmethod
    def peft_shapes(cls, base: nn.Module, rank: int) -> dict[str, tuple[int, ...]]:
        """The shapes of `peft_state` for ``base``."""
        return {cls.peft_keys[name]: shape for name, shape in cls.shapes(base, rank).items()}

    @torch.no_grad()
    def load_peft_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy in tensors of the shapes in `peft_shapes`; the parameter objects stay the same.

        A parameter on the meta device (in a model without values, as for merging on disk) is
        replaced.
        """
        for name, key in self.peft_keys.items():
            parameter: nn.Parameter = getattr(self, name)
            if parameter.is_meta:
                setattr(self, name, nn.Parameter(state[key].to(parameter.dtype)))
            else:
                parameter.copy_(state[key])

    def release(self) -> nn.Module:
        """Remove the base from this module and return it to its new owner."""
        base = self.base
        del self.base
        return base

    @property
    def weight(self) -> Tensor:
        """The frozen weight, for model code that reads a layer's type or device."""
        return self.base.weight  # type: ignore[return-value]

    def extra_repr(self) -> str:
        """The adapter's settings in ``print(model)``."""
        return f"{self.name}: rank={self.rank}, scaling={self.scaling:g}, dropout={self.dropout:g}"


def adapter_scaling(rank: int, alpha: float, use_rslora: bool) -> float:
    """The factor in front of the update: alpha / r, or alpha / √r (arXiv 2312.03732)."""
    return alpha / math.sqrt(rank) if use_rslora else alpha / rank


def register_adapter(cls: ClassT) -> ClassT:
    """Register ``cls`` under its ``variant``; usable as a decorator.

    The first registered class of a variant that adapts a module is used for it.

    A class of the same module and name may be registered again, as a notebook does.

    Raises:
        ValueError: the class lacks ``variant``, ``beside`` or ``peft_keys``, or files of the class
            could not be told from those of another variant.
    """
    if missing := [name for name in ("variant", "beside", "peft_keys") if not hasattr(cls, name)]:
        raise ValueError(f"{cls.__name__} does not set {' and '.join(missing)}")
    for other in itertools.chain(*(_registered[v] for v in _registered if v != cls.variant)):
        same_keys = set(cls.peft_keys.values()) == set(other.peft_keys.values())
        if same_keys and cls.peft_config == other.peft_config:
            raise ValueError(
                f"files of {cls.__name__} would look like those of {other.__name__}, variant "
                f"{other.variant!r}: peft_keys and peft_config are the same. Give it a peft_config "
                "of its own, such as {'peft_type': 'MY_VARIANT'}"
            )
    classes = _registered.setdefault(cls.variant, [])
    for place, other in enumerate(classes):
        if same_class(other, cls):
            classes[place] = cls
            return cls
    classes.append(cls)
    return cls


def variants() -> list[str]:
    """The names of the known variants, those of installed packages included."""
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        register_adapter(point.load())
    return sorted(_registered)


def adapter_classes(variant: str) -> list[type[Adapter]]:
    """The classes of ``variant``.

    Raises:
        ConfigError: there is no such variant.
    """
    if variant not in _registered and variant not in variants():
        raise ConfigError(
            f"lora.variant={variant!r} is no registered adapter variant: expected one of "
            f"{', '.join(variants())}{near_matches(variant, _registered)}"
        )
    return _registered[variant]


def adapter_class(variant: str, module: nn.Module) -> type[Adapter] | None:
    """The class of ``variant`` that can adapt ``module``; ``None`` if there is none."""
    return next((cls for cls in adapter_classes(variant) if cls.adapts(module)), None)


def _tensor(base: nn.Module) -> Tensor:
    """One of the base's weights (a 4-bit base has buffers, but no parameters)."""
    return next(itertools.chain(base.parameters(), base.buffers()), torch.empty(0))
