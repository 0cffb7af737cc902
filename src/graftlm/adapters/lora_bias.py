"""Trained biases of an adapted linear layer: its own, and one of the update.

    y = W x + b' + s · (B A x + c)        b' [out]  `trained_bias`      c [out]  `lora_bias`

b' starts as the frozen bias b and c at zero. PEFT calls the first ``bias: lora_only`` or ``all``,
the second ``lora_bias``. Both are added where the layer adds its own bias, at no cost.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from graftlm.adapters.adapter import DEFAULT, Adapter
from graftlm.errors import ConfigError

__all__ = ["OWN_BIAS", "UPDATE_BIAS", "WithBias"]

OWN_BIAS, UPDATE_BIAS = "base_layer.bias", "lora_B.bias"
"""The ends of their keys in PEFT's file."""


class WithBias(Adapter):
    """An adapter of a linear layer that can train biases; the arguments are those of `Adapter`.

    Attributes:
        trains_biases: whether it has one of the two.
        trained_bias: b' [out], or ``None`` if the bias is frozen.
        lora_bias: c [out], or ``None`` if the update has none.
    """

    trains_biases = False
    trained_bias: nn.Parameter | None
    lora_bias: nn.Parameter | None

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        use_rslora: bool = False,
        name: str = DEFAULT,
    ) -> None:
        super().__init__(base, rank, alpha, dropout, use_rslora, name)
        self.register_parameter("trained_bias", None)
        self.register_parameter("lora_bias", None)

    def train_biases(self, own: bool, update: bool) -> None:
        """Begin to train the layer's own bias, if it has one, and one of the update.

        Args:
            own: whether the layer's own trains.
            update: whether the update gets one.
        """
        frozen: Tensor | None = self.base.bias  # type: ignore[assignment]
        self.trains_biases = update or (own and frozen is not None)
        if own and frozen is not None:
            copy = torch.empty_like(frozen, dtype=torch.float32).copy_(frozen.detach())
            self.trained_bias = nn.Parameter(copy)
        if update:
            B: Tensor = self.lora_B  # type: ignore[assignment]
            self.lora_bias = nn.Parameter(torch.zeros(len(B), device=B.device))

    def bias_in_use(self, base: nn.Module, x: Tensor) -> Tensor | None:
        """B' + s c, in the type of the frozen bias, else of ``x``."""
        frozen: Tensor | None = base.bias  # type: ignore[assignment]
        own = frozen if self.trained_bias is None else self.trained_bias
        if self.lora_bias is not None:
            update = self.scaling * self.lora_bias
            own = update if own is None else own + update
        return own if own is None else own.to(x.dtype if frozen is None else frozen.dtype)

    def bias_change(self, base: nn.Module, x: Tensor) -> Tensor | None:
        """What the adapter adds to the frozen bias; ``None`` for nothing."""
        if self.trained_bias is None and self.lora_bias is None:
            return None
        frozen: Tensor | None = base.bias  # type: ignore[assignment]
        used = self.bias_in_use(base, x)
        return used if frozen is None or used is None else used - frozen

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """The factors, and the biases that train."""
        return super().adapter_parameters() | {
            name: parameter
            for name, parameter in (
                ("trained_bias", self.trained_bias),
                ("lora_bias", self.lora_bias),
            )
            if parameter is not None
        }

    def peft_state(self) -> dict[str, Tensor]:
        """The trained tensors; a trained bias is that of the layer PEFT calls `base_layer`."""
        return super().peft_state() | {
            key: parameter.detach()
            for key, parameter in ((OWN_BIAS, self.trained_bias), (UPDATE_BIAS, self.lora_bias))
            if parameter is not None
        }

    def load_peft_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy in."""
        super().load_peft_state(state)
        self.load_biases(state)

    @torch.no_grad()
    def load_biases(self, state: Mapping[str, Tensor]) -> None:
        """Copy the biases in; the layer's own may be missing, and then keeps its value."""
        for name, key in (("trained_bias", OWN_BIAS), ("lora_bias", UPDATE_BIAS)):
            parameter: nn.Parameter | None = getattr(self, name)
            if parameter is None or key not in state:
                continue
            if parameter.is_meta:
                setattr(self, name, nn.Parameter(state[key].float()))
            else:
                parameter.copy_(state[key])

    def parts(self) -> tuple[str, ...]:
        """The weight, and the bias if it changes.

        Raises:
            ConfigError: the update has a bias, and the layer has none to merge it into.
        """
        if self.trained_bias is None and self.lora_bias is None:
            return super().parts()
        if getattr(self.base, "bias", None) is None:
            raise ConfigError(
                "lora.lora_bias gave the update a bias, and the adapted layer has none that a "
                "merge could change: use the adapter as it is, beside its base"
            )
        return (*super().parts(), "bias")

    def replaced(self, part: str, tensor: Tensor) -> Tensor | None:
        """The merged bias; the weight is changed by `delta`."""
        if part != "bias":
            return super().replaced(part, tensor)
        own = tensor if self.trained_bias is None else self.trained_bias.detach()
        merged = own.float()
        if self.lora_bias is not None:
            merged = merged + self.scaling * self.lora_bias.detach()
        return merged

    @property
    def bias(self) -> Tensor | None:
        """The layer's own bias, for model code that reads it; the trained one while it is on."""
        frozen: Tensor | None = self.base.bias  # type: ignore[assignment]
        if frozen is None or self.trained_bias is None or not self.enabled:
            return frozen
        return self.trained_bias.to(frozen.dtype)
