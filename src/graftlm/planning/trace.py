"""One real training step, traced without computing it.

The traced code is `graftlm.training.step.train_step` itself, with the real model class, layers,
loss and optimiser. Only the tensors are fake. So the plan follows every change of the step.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import nn

from graftlm._compat.tracing import FakeTensorMode
from graftlm.adapters.adapter import Adapter
from graftlm.config import RunConfig
from graftlm.data.batch import IGNORED, Batch
from graftlm.errors import GraftLMError, ModelError
from graftlm.frozen.modules import stored_weights
from graftlm.models.load import empty_model
from graftlm.planning import fake_model
from graftlm.planning.extrapolate import Trace, depth_of, shallow_depths, with_depth
from graftlm.planning.tracker import TooManyCallsError, Tracker
from graftlm.system.placement import Placement
from graftlm.training.next_token import NextToken
from graftlm.training.step import train_step

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["BatchShape", "Trace", "trace_in_full", "trace_step"]

MOST_CALLS = 5000
"""Maximum operator calls of a layer in a step; most layers make a few hundred."""
SHORT_LENGTHS = (64, 128)
"""Row lengths at which a model with more calls is traced."""


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """The largest micro-batch of a run.

    Attributes:
        rows: B.
        length: L, the longest row.
        supervised: supervised tokens in the whole batch; ``None``: all.
        padded: whether some rows are shorter than L, which needs an attention mask.
        sequences: sequences in each row; more than one needs positions and a mask.
        passes: how many such micro-batches equal the work of a step; their gradients are added.
    """

    rows: int
    length: int
    supervised: int | None = None
    padded: bool = False
    sequences: int = 1
    passes: float = 1.0

    def batch(self) -> Batch:
        """Real tensors of this shape."""
        ids = torch.ones(self.rows, self.length, dtype=torch.int64)
        labels = torch.full((self.rows, self.length), IGNORED)
        most = self.rows * (self.length - 1)
        wanted = most if self.supervised is None else max(1, min(self.supervised, most))
        flat = torch.full((most,), IGNORED)
        flat[:wanted] = 1
        labels[:, 1:] = flat.view(self.rows, self.length - 1)
        mask = None
        if self.padded:
            mask = torch.ones(self.rows, self.length, dtype=torch.bool)
            mask[-1, -1] = False
        positions = None
        if self.sequences > 1:
            positions = torch.arange(self.length).remainder(-(-self.length // self.sequences))
            positions = positions.expand(self.rows, -1).contiguous()
        return Batch(ids, labels, mask, positions, self.rows * self.length)


def trace_step(
    architecture: PretrainedConfig,
    config: RunConfig,
    shape: BatchShape,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> Trace:
    """Trace a training step in its steady state, in which the optimiser's moments exist.

    Args:
        architecture: the transformers config of the base model.
        config: method, adapters and checkpointing; names and paths are ignored.
        shape: the batch of each forward pass, and their number.
        dtype: type of the unquantised weights.
        device: ``cpu`` or ``cuda``; the machine need not have it.

    Raises:
        ModelError: the step cannot be traced.
    """
    try:
        return _continued(architecture, config, shape, dtype, device)
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


def _continued(
    architecture: PretrainedConfig,
    config: RunConfig,
    shape: BatchShape,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Trace:
    arguments = config, shape, dtype, device
    depths = shallow_depths(
        architecture, config.lora, lambda kind: empty_model(kind, config.model.trust_remote_code)
    )
    if depths is None:
        return _at_length(architecture, *arguments)
    first, second = depths
    depth = depth_of(architecture)
    assert depth is not None
    small, large = (_at_length(with_depth(architecture, d), *arguments) for d in depths)
    return small.continued(large, (depth - first) / (second - first))


def _at_length(
    architecture: PretrainedConfig,
    config: RunConfig,
    shape: BatchShape,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Trace:
    """The trace; extrapolated from short rows if the model processes token by token."""
    try:
        return trace_in_full(architecture, config, shape, dtype, device, MOST_CALLS)
    except TooManyCallsError:
        short, longer = SHORT_LENGTHS
        first, second = (
            trace_in_full(architecture, config, at_length, dtype, device)
            for at_length in (dataclasses.replace(shape, length=n) for n in SHORT_LENGTHS)
        )
        return first.continued(second, (shape.length - short) / (longer - short))


def trace_in_full(
    architecture: PretrainedConfig,
    config: RunConfig,
    shape: BatchShape,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    most_calls: int | None = None,
) -> Trace:
    """`trace_step` without extrapolation.

    Raises:
        TooManyCallsError: the step called more than ``most_calls`` operators a layer.
    """
    device = Placement.on(device).first
    depth = depth_of(architecture)
    tracker = Tracker(device, None if most_calls is None else most_calls * (depth or 1))
    with FakeTensorMode(allow_non_fake_inputs=True), tracker:
        model = fake_model.build(architecture, config, dtype, device)
        if not Placement.on(device).exists:
            # The fast path of experts queries the GPU's capabilities.
            model.set_experts_implementation("eager")
        parameters = _claim_model(tracker, model)
        optimizer = torch.optim.AdamW(parameters, fused=True)
        tracker.watch(model, getattr(model, model.base_model_prefix, model), optimizer)
        _start_optimizer(optimizer, parameters)
        for state in optimizer.state.values():
            for value in state.values():
                tracker.claim(value, "optimizer")
        # In the second pass the gradients already exist; a third pass would be the same.
        batches = [shape.batch()] * (1 if shape.passes <= 1 else 2)
        resident = tracker.timeline.in_use()
        tracker.begin_step()
        settings = config.train
        train_step(
            model,
            batches,
            optimizer,
            parameters,
            settings.max_grad_norm,
            NextToken(settings),
        )
        for parameter in parameters:
            tracker.claim(parameter.grad, "gradients")
    return Trace(
        peaks=tracker.timeline.peaks(depth),
        resident=resident,
        cost=tracker.cost.plus(tracker.cost, shape.passes / len(batches) - 1),
        trainable_parameters=sum(p.numel() for p in parameters),
        weight_bytes=tracker.timeline.total("weights", "quantization_state"),
    )


def _claim_model(tracker: Tracker, model: nn.Module) -> list[nn.Parameter]:
    """Assign each of the model's tensors to a component; return the trainable ones."""
    for weight in stored_weights(model):
        for name, tensor in weight.tensors().items():
            tracker.claim(tensor, "quantization_state" if name in weight.scales else "weights")
    for module in model.modules():
        if isinstance(module, Adapter):
            for parameter in module.adapter_parameters().values():
                tracker.claim(parameter, "adapters")
    for tensor in (*model.parameters(), *model.buffers()):
        tracker.claim(tensor, "weights")
    return [p for p in model.parameters() if p.requires_grad]


def _start_optimizer(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    """Do a first step, so that the moments exist as in every later step."""
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
