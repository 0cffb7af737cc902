"""Predicts options. One option needs one trace; a plan needs a few."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from graftlm.config import Embeddings, RunConfig
from graftlm.models.capabilities import capabilities
from graftlm.planning import fake_model
from graftlm.planning.baseline_memory import framework_memory
from graftlm.planning.calibration import Calibration, calibrate
from graftlm.planning.largest_batch import laid, stacked
from graftlm.planning.loading import loading_bytes
from graftlm.planning.timeline import COMPONENTS
from graftlm.planning.trace import BatchShape, Trace, trace_step
from graftlm.system.placement import Placement
from graftlm.training.batching import most_positions
from graftlm.training.resolve import embeddings_of

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from graftlm.planning.trial_run import Measured

__all__ = ["METHODS", "Method", "Option", "Planner", "Setting", "as_setting"]

Method = Literal["full", "lora", "qlora"]
METHODS: tuple[Method, ...] = ("full", "lora", "qlora")

ROOM = 0.08
"""Share of the limit that a recommended setting leaves free: predictions are within 10 %."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """The settings that a plan varies; the others come from the run."""

    method: Method
    gradient_checkpointing: bool
    micro_batch_tokens: int | None
    max_length: int
    embeddings: Embeddings = "keep"

    def applied(self, config: RunConfig) -> RunConfig:
        """``config`` with this setting in it."""
        train = config.train.model_copy(
            update={
                "gradient_checkpointing": self.gradient_checkpointing,
                "micro_batch_tokens": self.micro_batch_tokens,
            }
        )
        data = config.data.model_copy(update={"max_length": self.max_length})
        model = config.model.model_copy(update={"embeddings": self.embeddings})
        return config.model_copy(
            update={"method": self.method, "model": model, "train": train, "data": data}
        )


@dataclasses.dataclass(frozen=True)
class Option:
    """A setting and its predicted memory and time.

    Attributes:
        rows: rows of the largest micro-batch; 1 if its rows are laid end to end.
        length: positions in each of these rows, with padding.
        predicted_peak_bytes: peak of the whole process, with loading; on CUDA, allocated memory.
        components: the bytes of the peak by `COMPONENTS`.
        peak_at: the moment of the peak: ``loading`` or a phase of the step, and the module.
        seconds_per_step: time of a step; ``None`` for a device this machine does not have.
        seconds_uncertainty: its standard deviation.
        fits: whether the peak leaves the share `ROOM` of the limit free.
    """

    method: Method
    gradient_checkpointing: bool
    micro_batch_tokens: int | None
    max_length: int
    embeddings: Embeddings
    rows: int
    length: int
    predicted_peak_bytes: int
    components: dict[str, int]
    peak_at: str
    trainable_parameters: int
    seconds_per_step: float | None
    seconds_uncertainty: float | None
    fits: bool

    @property
    def setting(self) -> Setting:
        """The setting without the predictions."""
        return Setting(*(getattr(self, f.name) for f in dataclasses.fields(Setting)))


class Planner:
    """Plans for one model, device and limit.

    Args:
        architecture: the transformers config of the base model.
        config: the run's settings.
        dtype: type of the unquantised weights (`full` trains in float32).
        folder: the model folder, for its tokenizer and tensor sizes; ``None`` if there is none.
        limit: the memory limit in bytes.
        device: ``cpu`` or ``cuda``.
        lengths: tokens of each row of the data, if known.
    """

    def __init__(
        self,
        architecture: PretrainedConfig,
        config: RunConfig,
        dtype: torch.dtype,
        folder: Path | None,
        limit: int,
        device: str = "cpu",
        lengths: Sequence[int] = (),
    ) -> None:
        self.architecture, self.config, self.dtype = architecture, config, dtype
        self.folder, self.limit, self.device = folder, limit, device
        self.placement = Placement.on(device)
        self.lengths = sorted(lengths)
        self._traces: dict[tuple[Method, bool, Embeddings, BatchShape], Trace] = {}

    @functools.cached_property
    def _framework(self) -> Measured | None:
        return framework_memory(self.folder) if self.placement.runs_on_cpu else None

    @functools.cached_property
    def _speed(self) -> Calibration | None:
        return calibrate() if self.placement.exists else None

    @functools.cached_property
    def _end_to_end(self) -> bool:
        """Whether rows are laid end to end. Assumes that the model keeps them apart, as most do."""
        if not self.placement.rows_end_to_end:
            return False
        can = capabilities(fake_model.shallow(self.architecture, self.config))
        return can.attends_by_blocks and can.takes_positions

    def at_once(self, setting: Setting) -> int:
        """Maximum positions of a micro-batch with rows of the maximum length."""
        whole = self.config.train.batch_size * setting.max_length
        most = self.placement.positions_at_once(setting.micro_batch_tokens)
        return whole if most is None else min(most, whole)

    def shape(self, setting: Setting) -> BatchShape:
        """The largest possible micro-batch of ``setting``, in the run's layout."""
        most, train = most_positions(self.architecture), self.config.train
        kept = [length for length in self.lengths if length <= setting.max_length]
        sequences = 1
        if self.config.data.packing:
            mean = statistics.fmean(kept) if kept else setting.max_length
            sequences = max(2, round(setting.max_length / mean))
        if sequences > 1 or not kept:
            kept = [setting.max_length]
        at_once = self.placement.positions_at_once(setting.micro_batch_tokens)
        if at_once is not None and self._end_to_end:
            shape = laid(kept, train.batch_size, at_once, most, sequences)
        else:
            shape = stacked(kept, train.batch_size, at_once, most, sequences)
        passes = shape.passes * train.gradient_accumulation_steps
        return dataclasses.replace(shape, passes=passes)

    def option(self, setting: Setting) -> Option:
        """Predict ``setting``."""
        shape = self.shape(setting)
        trace = self._trace(setting, shape)
        start = trace.peak
        base = self._framework.resident_bytes if self._framework else 0
        peak, components = base + start.nbytes, {"framework": base, **start.components}
        peak_at = f"{start.phase} {start.module}".strip()
        loading = self._loading(setting, trace)
        if loading > peak:
            held = ("framework", "weights", "quantization_state")
            components = {name: components.get(name, 0) for name in held}
            components["temporary"] = max(0, loading - sum(components.values()))
            peak, peak_at = loading, "loading"
        seconds = self._speed.seconds(trace.cost) if self._speed else (None, None)
        return Option(
            **dataclasses.asdict(setting),
            rows=shape.rows,
            length=shape.length,
            predicted_peak_bytes=peak,
            components={name: components.get(name, 0) for name in COMPONENTS},
            peak_at=peak_at,
            trainable_parameters=trace.trainable_parameters,
            seconds_per_step=seconds[0],
            seconds_uncertainty=seconds[1],
            fits=peak <= self.limit * (1 - ROOM),
        )

    def _trace(self, setting: Setting, shape: BatchShape) -> Trace:
        key = setting.method, setting.gradient_checkpointing, setting.embeddings, shape
        if key not in self._traces:
            config, dtype = setting.applied(self.config), self._type(setting)
            trace = trace_step(self.architecture, config, shape, dtype, self.device)
            self._traces[key] = trace
        return self._traces[key]

    def _loading(self, setting: Setting, trace: Trace) -> int:
        """Peak memory of the process before the first step."""
        if self._framework is None:
            return 0  # a GPU receives the finished model
        settings = setting.applied(self.config)
        extra = loading_bytes(self.folder, self.architecture, self._type(setting), settings)
        loaded = self._framework.resident_bytes + trace.weight_bytes + extra
        return max(self._framework.loading_peak_bytes, loaded)

    def _type(self, setting: Setting) -> torch.dtype:
        import torch

        return torch.float32 if setting.method == "full" else self.dtype


def as_setting(config: RunConfig, method: Method, checkpointing: bool) -> Setting:
    """The run's own settings, with another method and checkpointing."""
    return Setting(
        method,
        checkpointing,
        config.train.micro_batch_tokens,
        config.data.max_length,
        embeddings_of(config.model_copy(update={"method": method})),
    )
