"""One real training step, traced without computing it.

The traced code is `graftlm.training.step.train_step` itself, with the real model class, layers,
loss and optimiser. Only the tensors are fake. So the plan follows every change of the step.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from graftlm._compat.experts import experts_in
from graftlm._compat.tracing import FakeTensorMode
from graftlm.adapters.adapter import Adapter
from graftlm.config import RunConfig
from graftlm.data.batch import IGNORED, Batch
from graftlm.errors import GraftLMError, ModelError
from graftlm.frozen.modules import stored_weights
from graftlm.planning import fake_model
from graftlm.planning.cost import CALLS
from graftlm.planning.extrapolate import (
    Trace,
    depth_of,
    extrapolated,
    shallow_depths,
    with_depth,
)
from graftlm.planning.timeline import layer_of
from graftlm.planning.tracker import TooManyCallsError, Tracker
from graftlm.system.placement import Placement
from graftlm.training.next_token import NextToken
from graftlm.training.step import train_step

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["BatchShape", "Shortcuts", "Trace", "trace_in_full", "trace_step"]

MOST_CALLS = 5000
"""Maximum operator calls of a layer in a step; most layers make a few hundred."""
CALLS_OF_EXPERT = 150
"""The same for each expert: the products of each are calls of their own."""
SHORT_LENGTHS = (16, 32)
"""Row lengths at which a model with more calls is traced."""
BLOCKS = (64, 128)
"""The same for one that reads its rows in blocks, of 64 tokens in most (gated delta rule)."""


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """The largest micro-batch of a run.

    Attributes:
        rows: B.
        length: L, the longest row.
        padded: whether some rows are shorter than L, which needs an attention mask.
        sequences: sequences in each row; more than one needs positions and a mask.
        passes: how many such micro-batches equal the work of a step; their gradients are added.
    """

    rows: int
    length: int
    padded: bool = False
    sequences: int = 1
    passes: float = 1.0

    def batch(self) -> Batch:
        """Real tensors of this shape, every token supervised."""
        ids = torch.ones(self.rows, self.length, dtype=torch.int64)
        labels = ids.clone()
        labels[:, 0] = IGNORED
        mask = positions = None
        if self.padded:
            mask = torch.ones_like(ids, dtype=torch.bool)
            mask[-1, -1] = False
        if self.sequences > 1:
            positions = torch.arange(self.length).remainder(-(-self.length // self.sequences))
            positions = positions.expand(self.rows, -1).contiguous()
        return Batch(ids, labels, mask, positions, self.rows * self.length)


class Shortcuts:
    """What the traces of one architecture and its adapters have in common.

    Args:
        architecture: the transformers config of the base model.
        config: the adapter settings; method and batch do not count.

    Attributes:
        too_long: rows of this length or more are traced at two short lengths.
    """

    def __init__(self, architecture: PretrainedConfig, config: RunConfig) -> None:
        self.too_long: float = math.inf
        self._architecture, self._config = architecture, config

    @functools.cached_property
    def depths(self) -> tuple[int, int] | None:
        """`shallow_depths` of the architecture."""
        return shallow_depths(self._architecture, self._config)


def trace_step(
    architecture: PretrainedConfig,
    config: RunConfig,
    shape: BatchShape,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    shortcuts: Shortcuts | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Trace:
    """Trace a training step in its steady state, in which the optimiser's moments exist.

    A deep model, and one that reads its rows token by token, is extrapolated from smaller traces.

    Args:
        architecture: the transformers config of the base model.
        config: method, adapters and checkpointing; names and paths are ignored.
        shape: the batch of each forward pass, and their number.
        dtype: type of the unquantised weights.
        device: ``cpu`` or ``cuda``; the machine need not have it.
        shortcuts: of earlier traces of the same architecture and adapter settings.
        progress: is called with the place in the step.

    Raises:
        ModelError: the step cannot be traced.
    """
    known = shortcuts or Shortcuts(architecture, config)

    def with_layers(depth: int | None) -> Trace:
        model = architecture if depth is None else with_depth(architecture, depth)
        more = "" if depth is None else f" that stand for {depth_of(architecture)}"

        @functools.cache
        def with_length(length: int, bounded: bool = False) -> Trace:
            batch = dataclasses.replace(shape, length=length)
            return trace_in_full(
                model, config, batch, dtype, device, lambda at: progress(at + more), bounded=bounded
            )

        if shape.length <= SHORT_LENGTHS[1]:
            return with_length(shape.length)
        if shape.length < known.too_long:
            try:
                return with_length(shape.length, bounded=True)
            except TooManyCallsError:
                known.too_long = shape.length
        first, second = (with_length(length).cost[CALLS] for length in SHORT_LENGTHS)
        # A model that reads blocks pads a short row to a whole one.
        reads_blocks = second - first < SHORT_LENGTHS[1] - SHORT_LENGTHS[0]
        return extrapolated(with_length, BLOCKS if reads_blocks else SHORT_LENGTHS, shape.length)

    try:
        depths = known.depths
        if depths is None:
            return with_layers(None)
        return extrapolated(with_layers, depths, architecture.get_text_config().num_hidden_layers)
    except GraftLMError:
        raise
    except Exception as error:  # a model's code may fail in any way without values
        int8 = config.model.embeddings == "int8"
        raise ModelError(
            f"a training step of this model cannot be traced with {config.method}"
            f"{' and embeddings in 8 bits' if int8 else ''}: {type(error).__name__}: {error}. "
            f"{'Use model.embeddings=keep, or train' if int8 else 'Train'} it for a few steps "
            "instead: their peak memory is in summary.json."
        ) from error


def trace_in_full(
    architecture: PretrainedConfig,
    config: RunConfig,
    shape: BatchShape,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    progress: Callable[[str], None] = lambda text: None,
    *,
    bounded: bool = False,
) -> Trace:
    """`trace_step` without extrapolation.

    Raises:
        TooManyCallsError: the step is ``bounded``, and calls so many operators that the model
            reads its rows token by token.
    """
    device = Placement.on(device).first
    depth = depth_of(architecture)

    def entered(module: str) -> None:
        if (layer := layer_of(module)) is not None:
            progress(f"{tracker.phase}, layer {layer + 1} of {depth}")

    tracker = Tracker(device, entered)
    with FakeTensorMode(allow_non_fake_inputs=True), tracker:
        model = fake_model.build(architecture, config, dtype, device)
        if bounded:
            experts = sum(experts_in(module) for module in model.modules())
            tracker.most_calls = MOST_CALLS * (depth or 1) + CALLS_OF_EXPERT * experts
        _claim_model(tracker, model)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, fused=True)
        for parameter in parameters:  # a first step, so that the moments exist
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tracker.claim("optimizer", *(v for s in optimizer.state.values() for v in s.values()))
        # In the second pass the gradients already exist; a third pass would be the same.
        batches = [shape.batch()] * (1 if shape.passes <= 1 else 2)
        resident = tracker.timeline.in_use()
        tracker.watch(model, getattr(model, model.base_model_prefix, model), optimizer)
        objective, most = NextToken(config.train), config.train.max_grad_norm
        train_step(model, batches, optimizer, parameters, most, objective)
        tracker.claim("gradients", *(p.grad for p in parameters if p.grad is not None))
    return Trace(
        peaks=tracker.timeline.peaks(depth),
        resident=resident,
        cost=tracker.cost.plus(tracker.cost, shape.passes / len(batches) - 1),
        trainable_parameters=sum(p.numel() for p in parameters),
        weight_bytes=tracker.timeline.total("weights", "quantization_state"),
    )


def _claim_model(tracker: Tracker, model: nn.Module) -> None:
    """Assign each of the model's tensors to a component."""
    for weight in stored_weights(model):
        for name, tensor in weight.tensors().items():
            tracker.claim("quantization_state" if name in weight.scales else "weights", tensor)
    for module in model.modules():
        if isinstance(module, Adapter):
            tracker.claim("adapters", *module.adapter_parameters().values())
    tracker.claim("weights", *model.parameters(), *model.buffers())
