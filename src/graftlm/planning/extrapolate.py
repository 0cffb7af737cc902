"""Planning a deep model from shallow ones.

Layers repeat, so memory and work are linear in their number *at each place of the step*: the
forward pass ends with all layers' activations, the backward pass begins with them in the last layer
and ends with all gradients in the first. A deep model is traced twice at small depths, each place
is continued along its line, and the peak is the largest. Tests compare it with the full trace.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from graftlm.config import LoRAConfig
from graftlm.planning.cost import Work
from graftlm.planning.timeline import Peak

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = [
    "continued",
    "continued_count",
    "continued_work",
    "depth_of",
    "shallow_depths",
    "with_depth",
]

SHALLOWEST = 4
"""Layers of the first small model; fewer would not have left the ends' own behaviour behind."""
WORTHWHILE = 3
"""A model this many times deeper than the two small ones together is continued, not traced."""


def shallow_depths(architecture: PretrainedConfig, lora: LoRAConfig) -> tuple[int, int] | None:
    """Two depths to trace in place of the model's own; ``None`` to trace it as it is."""
    depth = depth_of(architecture)
    if depth is None or _names_layers(lora):
        return None
    period = _period(architecture, depth)
    first = SHALLOWEST + (depth - SHALLOWEST) % period
    second = first + period * -(-2 // period)
    return (first, second) if depth >= WORTHWHILE * (first + second) // 2 else None


def with_depth(architecture: PretrainedConfig, depth: int) -> PretrainedConfig:
    """The same architecture with ``depth`` layers."""
    whole = copy.deepcopy(architecture)
    text = whole.get_text_config()
    before = text.num_hidden_layers
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == before:
            setattr(text, name, value[:depth])
    text.num_hidden_layers = depth
    return whole


def continued_count(first: int, second: int, depths: tuple[int, int], depth: int) -> int:
    """The line through two counts, at ``depth``."""
    return first + (second - first) * (depth - depths[0]) // (depths[1] - depths[0])


def continued(
    first: Mapping[str, Peak], second: Mapping[str, Peak], depths: tuple[int, int], depth: int
) -> dict[str, Peak]:
    """Each place's peak, and each component of it, at ``depth``."""
    peaks = {}
    for place, end in second.items():
        start = first.get(place, end)
        names = [name for name in end.components if name in start.components]
        components = {
            name: continued_count(start.components[name], end.components[name], depths, depth)
            for name in names
        } | {name: size for name, size in end.components.items() if name not in names}
        peaks[place] = dataclasses.replace(
            end,
            nbytes=sum(components.values()),
            components=components,
            alive=continued_count(start.alive, end.alive, depths, depth),
        )
    return peaks


def continued_work(first: Work, second: Work, depths: tuple[int, int], depth: int) -> Work:
    """Work at ``depth``."""
    return first.plus(second.plus(first, -1), (depth - depths[0]) / (depths[1] - depths[0]))


def depth_of(architecture: PretrainedConfig) -> int | None:
    """Number of layers, if the config says it in the usual way."""
    depth = getattr(architecture.get_text_config(), "num_hidden_layers", None)
    return depth if isinstance(depth, int) else None


def _names_layers(lora: LoRAConfig) -> bool:
    """Whether the settings treat some layers unlike others: they name a layer by its number."""
    targets = (lora.targets,) if isinstance(lora.targets, str) else lora.targets
    names = (*targets, *lora.exclude, *lora.rank_pattern, *lora.alpha_pattern)
    return any(re.search(r"(^|[^A-Za-z])\d+|\\d|\[0-9", name) for name in names)


def _period(architecture: PretrainedConfig, depth: int) -> int:
    """After how many layers the kinds of layers repeat."""
    text: Any = architecture.get_text_config()
    patterns = [v for v in vars(text).values() if isinstance(v, list) and len(v) == depth]
    period = 1
    while period < depth and any(
        pattern[i] != pattern[i % period] for pattern in patterns for i in range(depth)
    ):
        period += 1
    return period
