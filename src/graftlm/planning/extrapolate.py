"""Plans a large model from small ones by linear extrapolation.

Layers repeat, so the peak at each place of a step is linear in their number. A deep model is traced
at two small depths, and the line through both gives its own depth. Some models process a sequence
token by token in Python (Mamba without its CUDA kernels), so their trace takes time in proportion
to the length. Such a model is traced at two short lengths and extrapolated in the same way. This
underestimates attention whose memory is quadratic in the length. A test compares an extrapolated
trace with a full one.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from graftlm.config import LoRAConfig, RunConfig
from graftlm.errors import ModelError
from graftlm.models.assemble import empty_model
from graftlm.planning.cost import Cost
from graftlm.planning.timeline import COMPONENTS, Peak

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["Trace", "depth_of", "extrapolated", "shallow_depths", "with_depth"]

SHALLOWEST = 2
"""Layers of the smaller model: a first and a last one."""
WORTHWHILE = 2
"""A model at least this many times deeper than both small models together is extrapolated."""


@dataclasses.dataclass(frozen=True)
class Trace:
    """The memory and work of one step.

    Attributes:
        peaks: the peak memory at each place of the step, tensors only.
        resident: bytes in use between two steps.
        cost: floating-point operations and bytes moved by one step.
        trainable_parameters: the number of trainable parameters.
        weight_bytes: the size of the base model in its storage format.
    """

    peaks: dict[str, Peak]
    resident: int
    cost: Cost
    trainable_parameters: int
    weight_bytes: int

    @property
    def peak(self) -> Peak:
        """The peak memory of the whole step."""
        return max(self.peaks.values(), key=lambda peak: peak.nbytes)


def extrapolated(trace: Callable[[int], Trace], sizes: tuple[int, int], size: int) -> Trace:
    """The trace at ``size``, on the line through the traces at two smaller sizes."""
    first, second = map(trace, sizes)
    factor = (size - sizes[0]) / (sizes[1] - sizes[0])

    def line(start: int, end: int) -> int:
        return max(0, round(start + factor * (end - start)))

    peaks = {}
    for place, end in second.peaks.items():
        start = first.peaks.get(place, end).components
        lines = {n: line(start.get(n, 0), end.components.get(n, 0)) for n in COMPONENTS}
        components = {name: size for name, size in lines.items() if size}
        peaks[place] = dataclasses.replace(end, components=components)
    return Trace(
        peaks=peaks,
        resident=line(first.resident, second.resident),
        cost=first.cost.plus(second.cost.plus(first.cost, -1), factor),
        trainable_parameters=line(first.trainable_parameters, second.trainable_parameters),
        weight_bytes=line(first.weight_bytes, second.weight_bytes),
    )


def shallow_depths(architecture: PretrainedConfig, config: RunConfig) -> tuple[int, int] | None:
    """Two depths to trace instead of the model's own; ``None``: trace the model itself.

    Settings of adapters that name layers by number are traced with the model itself.
    """
    depth = depth_of(architecture)
    if depth is None or depth < WORTHWHILE * (2 * SHALLOWEST + 1) or _names_layers(config.lora):
        return None
    kinds = _kinds(architecture, config)
    if kinds is None:
        return None
    start, period = _repetition(kinds)
    first = max(SHALLOWEST, start + 1)
    first += (depth - first) % period
    second = first + period
    if depth < WORTHWHILE * (first + second):
        return None
    try:  # a model may count its layers from the end
        cut = _kinds(with_depth(architecture, second), config)
    except (ModelError, AttributeError):
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


def _kinds(architecture: PretrainedConfig, config: RunConfig) -> list[Any] | None:
    """The kind of each layer: its class, its shapes, and its entries in the config's lists."""
    depth, model = depth_of(architecture), empty_model(architecture, config.model.trust_remote_code)
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    layers = next((layers for layers in lists if len(layers) == depth), None)
    if layers is None:
        return None
    settings = vars(architecture.get_text_config()).values()
    listed = [values for values in settings if isinstance(values, list) and len(values) == depth]
    return [
        (
            type(layer).__name__,
            [(name, parameter.shape) for name, parameter in layer.named_parameters()],
            [values[i] for values in listed],
        )
        for i, layer in enumerate(layers)
    ]


def _repetition(kinds: Sequence[Any]) -> tuple[int, int]:
    """The smallest ``start + period`` such that kinds repeat with ``period`` from ``start`` on."""
    depth = len(kinds)
    for total in range(1, depth + 1):
        for period in range(1, total + 1):
            start = total - period
            if all(kinds[i] == kinds[i + period] for i in range(start, depth - period)):
                return start, period
    return 0, depth


def _names_layers(lora: LoRAConfig) -> bool:
    """Whether the settings name a layer by its number, so that layers differ."""
    targets = (lora.targets,) if isinstance(lora.targets, str) else lora.targets
    names = (*targets, *lora.exclude, *lora.rank_pattern, *lora.alpha_pattern)
    names = (*names, *lora.modules_to_save)
    return bool(lora.layers) or any(
        re.search(r"(^|[^A-Za-z])\d+|\\d|\[0-9", name) for name in names
    )
