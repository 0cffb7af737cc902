"""What a plan says of a mixture of experts: how many there are, and whether a run adapts them."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from graftlm.adapters.names import matching, pattern_value
from graftlm.config import RunConfig
from graftlm.models.assemble import empty_model
from graftlm.models.experts import expert_weights

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["FusedExperts", "fused_experts"]


@dataclasses.dataclass(frozen=True)
class FusedExperts:
    """The fused experts of a model, over all of its layers.

    Attributes:
        matrices: their number: experts times projections times layers.
        weights: the parameters in them.
        stored: the weight format of a QLoRA run.
        adapted: the parameters of the adapters that the settings put on them.
        if_adapted: the parameters of adapters on all of them.
        names: how `lora.target_parameters` names them.
        router: whether the settings adapt the router.
    """

    matrices: int
    weights: int
    stored: str
    adapted: int
    if_adapted: int
    names: tuple[str, ...]
    router: bool = False

    def __str__(self) -> str:
        said = (
            f"Experts: {self.matrices:,} matrices, {self.weights:,} weights, in {self.stored} with "
            f"qlora; the router is {'adapted' if self.router else 'frozen'}"
        )
        if self.adapted:
            return f"{said}; their adapters have {self.adapted:,} parameters."
        names = ", ".join(self.names)
        return (
            f"{said}; they are frozen. --set 'lora.target_parameters=[{names}]' adapts them too: "
            f"{self.if_adapted:,} parameters."
        )


def fused_experts(architecture: PretrainedConfig, config: RunConfig) -> FusedExperts | None:
    """The experts of a model; ``None`` if it has none of a known layout."""
    lora = config.lora
    weights = expert_weights(empty_model(architecture, config.model.trust_remote_code))
    if not weights:
        return None
    wanted = set(matching(weights, lora.target_parameters))
    wanted -= set(matching(weights, lora.exclude))
    update = {
        name: pattern_value(lora.rank_pattern, name, lora.rank) * shape[0] * (shape[1] + shape[2])
        for name, (_, _, shape, *_) in weights.items()
    }
    return FusedExperts(
        matrices=sum(weight.shape[0] for weight in weights.values()),
        weights=sum(math.prod(weight.shape) for weight in weights.values()),
        stored=config.model.weight_format,
        adapted=sum(update[name] for name in wanted),
        if_adapted=sum(update.values()),
        router=any(
            entry.endswith(".weight") and not matching(weights, [entry])
            for entry in lora.target_parameters
        ),
        names=tuple(dict.fromkeys(".".join(name.split(".")[-2:]) for name in weights)),
    )
