"""Planning a large model from small ones: memory and work are linear in what repeats.

Layers repeat, so at each place of a step the peak is linear in their number. A deep model is traced
at two small depths and continued along the line. Where a model reads its sequence token by token in
Python (Mamba without its CUDA kernels), a trace takes as long as the sequence; it is then made at
two short lengths and continued in the same way. Attention that needs memory in the square of the
length is underestimated there. A test compares a continued trace with the full one.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from graftlm.config import LoRAConfig
from graftlm.planning.cost import Work
from graftlm.planning.timeline import COMPONENTS, Peak

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["Trace", "depth_of", "shallow_depths", "with_depth"]

SHALLOWEST = 2
"""Layers of the first small model: a first one and a last one."""
WORTHWHILE = 2
"""A model this many times deeper than the two small ones together is continued, not traced."""


@dataclasses.dataclass(frozen=True)
class Trace:
    """What one step takes.

    Attributes:
        peaks: the moment with most memory in use in each place of the step, tensors only.
        resident: bytes alive between two steps.
        work: floating-point operations and bytes moved by one step.
        trainable_parameters: numbers that the optimiser changes.
        weight_bytes: the base model, as it is held.
    """

    peaks: dict[str, Peak]
    resident: int
    work: Work
    trainable_parameters: int
    weight_bytes: int

    @property
    def peak(self) -> Peak:
        """The moment with most memory in use in the whole step."""
        return max(self.peaks.values(), key=lambda peak: peak.nbytes)

    def continued(self, other: Trace, factor: float) -> Trace:
        """``self + factor (other - self)``: the line through two traces."""

        def line(first: int, second: int) -> int:
            return max(0, round(first + factor * (second - first)))

        peaks = {}
        for place, end in other.peaks.items():
            start = self.peaks.get(place, end)
            names = [n for n in COMPONENTS if n in start.components or n in end.components]
            components = {
                name: line(start.components.get(name, 0), end.components.get(name, 0))
                for name in names
            }
            peaks[place] = dataclasses.replace(end, components=components)
        return Trace(
            peaks=peaks,
            resident=line(self.resident, other.resident),
            work=self.work.plus(other.work.plus(self.work, -1), factor),
            trainable_parameters=line(self.trainable_parameters, other.trainable_parameters),
            weight_bytes=line(self.weight_bytes, other.weight_bytes),
        )


def shallow_depths(
    architecture: PretrainedConfig, lora: LoRAConfig, build: Callable[[PretrainedConfig], nn.Module]
) -> tuple[int, int] | None:
    """Two depths to trace in place of the model's own; ``None``: it is traced as it is.

    Args:
        architecture: the transformers config.
        lora: a setting that names layers by number treats them differently, so all are traced.
        build: makes the model of a config on the meta device.
    """
    depth = depth_of(architecture)
    if depth is None or depth < WORTHWHILE * (2 * SHALLOWEST + 1) or _names_layers(lora):
        return None
    kinds = _kinds(architecture, build)
    if kinds is None:
        return None
    start, period = _repetition(kinds)
    first = max(SHALLOWEST, start + 1)
    first += (depth - first) % period
    second = first + period
    if depth < WORTHWHILE * (first + second):
        return None
    try:  # a model may count its layers from the end
        cut = _kinds(with_depth(architecture, second), build)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError):
        return None
    return (first, second) if cut == kinds[:second] else None


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


def depth_of(architecture: PretrainedConfig) -> int | None:
    """Number of layers, if the config says it in the usual way."""
    depth = getattr(architecture.get_text_config(), "num_hidden_layers", None)
    return depth if isinstance(depth, int) else None


def _kinds(architecture: PretrainedConfig, build: Any) -> list[Any] | None:
    """What each layer is: its class, its shapes, and what the config lists for it."""
    text, depth = architecture.get_text_config(), depth_of(architecture)
    layers = next(
        (
            m
            for m in build(architecture).modules()
            if isinstance(m, nn.ModuleList) and len(m) == depth
        ),
        None,
    )
    if layers is None:
        return None
    listed = [v for v in vars(text).values() if isinstance(v, list) and len(v) == depth]
    return [
        (
            type(layer).__name__,
            [(name, parameter.shape) for name, parameter in layer.named_parameters()],
            [values[i] for values in listed],
        )
        for i, layer in enumerate(layers)
    ]


def _repetition(kinds: Sequence[Any]) -> tuple[int, int]:
    """The least ``start + period`` so that from ``start`` on the kinds repeat every ``period``."""
    depth = len(kinds)
    for total in range(1, depth + 1):
        for period in range(1, total + 1):
            start = total - period
            if all(kinds[i] == kinds[i + period] for i in range(start, depth - period)):
                return start, period
    return 0, depth


def _names_layers(lora: LoRAConfig) -> bool:
    """Whether the settings treat some layers unlike others: they name a layer by its number."""
    targets = (lora.targets,) if isinstance(lora.targets, str) else lora.targets
    names = (*targets, *lora.exclude, *lora.rank_pattern, *lora.alpha_pattern)
    return any(re.search(r"(^|[^A-Za-z])\d+|\\d|\[0-9", name) for name in names)
