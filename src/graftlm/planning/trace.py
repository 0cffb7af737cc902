"""One real training step, traced without computing it.

The step is `graftlm.training.step.train_step` itself, with the real model class, layers, loss and
optimiser; only the tensors are fake. Whatever the step becomes, the plan follows.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from graftlm.adapters.adapter import Adapter
from graftlm.config import RunConfig
from graftlm.data.batch import IGNORED, Batch
from graftlm.frozen.nf4.linear import NF4Linear
from graftlm.planning import fake_model as skeleton
from graftlm.planning.cost import Work
from graftlm.planning.extrapolate import (
    continued,
    continued_count,
    continued_work,
    depth_of,
    shallow_depths,
    with_depth,
)
from graftlm.planning.fake_values import values_can_be_asked
from graftlm.planning.timeline import Peak
from graftlm.planning.tracker import Tracker
from graftlm.system import RETURNED_FROM
from graftlm.training.step import train_step

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["BatchShape", "Trace", "trace_step"]


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """The largest micro-batch of a run.

    Attributes:
        rows: B.
        length: L, the longest row.
        supervised: learned tokens in the whole batch; ``None``: all.
        padded: whether some rows are shorter than L, which brings an attention mask along.
        sequences: in each row; more than one brings positions and a mask along.
        passes: how many such micro-batches a step is worth, whose gradients are added.
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
        """The moment with most memory in use in the whole step; of equal ones, the fullest."""
        return max(self.peaks.values(), key=lambda peak: (peak.nbytes, peak.alive))


def trace_step(
    architecture: PretrainedConfig,
    config: RunConfig,
    shape: BatchShape,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> Trace:
    """Trace a training step in its steady state, the optimiser's moments in place.

    Args:
        architecture: the transformers config of the base model.
        config: method, adapters and checkpointing; names and paths are not read.
        shape: the batch of each forward pass, and how many there are.
        dtype: type of the unquantised weights.
        device: ``cpu`` or ``cuda``; the machine need not have it.
    """
    depths = shallow_depths(architecture, config.lora)
    if depths is None:
        return _trace(architecture, config, shape, dtype, device)
    first, second = (
        _trace(with_depth(architecture, depth), config, shape, dtype, device) for depth in depths
    )
    depth = depth_of(architecture)
    assert depth is not None
    counts = {
        name: continued_count(getattr(first, name), getattr(second, name), depths, depth)
        for name in ("resident", "trainable_parameters", "weight_bytes")
    }
    return Trace(
        peaks=continued(first.peaks, second.peaks, depths, depth),
        work=continued_work(first.work, second.work, depths, depth),
        **counts,
    )


def _trace(
    architecture: PretrainedConfig,
    config: RunConfig,
    shape: BatchShape,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Trace:
    device = torch.device("cuda:0" if torch.device(device).type == "cuda" else device)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    tracker = Tracker(mode, device)
    with values_can_be_asked(), mode, tracker:
        model = skeleton.build(architecture, config, dtype, device)
        parameters = _claim_model(tracker, model)
        optimizer = torch.optim.AdamW(parameters, fused=True)
        tracker.watch(model, _body(model))
        tracker.watch_optimizer(optimizer)
        _start_optimizer(optimizer, parameters)
        for state in optimizer.state.values():
            for value in state.values():
                tracker.claim(value, "optimizer")
        # From the second pass on the gradients are there already; a third shows nothing new.
        batches = [_fake_batch(tracker, shape, device)] * (1 if shape.passes <= 1 else 2)
        resident = tracker.timeline.in_use()
        tracker.begin_step()
        settings = config.train
        train_step(
            model,
            batches,
            optimizer,
            parameters,
            settings.max_grad_norm,
            settings.loss_tolerance,
        )
        for parameter in parameters:
            tracker.claim(parameter.grad, "gradients")
    return Trace(
        peaks=tracker.timeline.peaks(
            depth_of(architecture), RETURNED_FROM if device.type == "cpu" else 0
        ),
        resident=resident,
        work=tracker.work.plus(tracker.work, shape.passes / len(batches) - 1),
        trainable_parameters=sum(p.numel() for p in parameters),
        weight_bytes=tracker.timeline.total("weights", "quantization_state"),
    )


def _claim_model(tracker: Tracker, model: nn.Module) -> list[nn.Parameter]:
    """Say what each of the model's tensors is; return the trainable ones."""
    for module in model.modules():
        if isinstance(module, NF4Linear):
            tracker.claim(module.codes, "weights")
            for part in (module.absmax, module.nested_absmax, module.offset):
                tracker.claim(part, "quantization_state")
        if isinstance(module, Adapter):
            for parameter in module.adapter_parameters().values():
                tracker.claim(parameter, "adapters")
    for tensor in (*model.parameters(), *model.buffers()):
        tracker.claim(tensor, "weights")
    return [p for p in model.parameters() if p.requires_grad]


def _body(model: Any) -> nn.Module:
    """The model without its output head."""
    body = getattr(model, model.base_model_prefix, model)
    assert isinstance(body, nn.Module)
    return body


def _start_optimizer(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    """A first step, so that the moments exist as they do in every later one."""
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _fake_batch(tracker: Tracker, shape: BatchShape, device: torch.device) -> Batch:
    with torch.utils._python_dispatch._disable_current_modes():
        real = shape.batch()
    fake = tracker.shadows.fake
    mask, positions = real.attention_mask, real.position_ids
    return Batch(
        fake(real.input_ids, device),
        fake(real.labels, device),
        None if mask is None else fake(mask, device),
        None if positions is None else fake(positions, device),
        real.tokens,
    )
