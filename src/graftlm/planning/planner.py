"""Predicts options. One option needs one trace; a plan needs a few."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from graftlm.adapters import add_lora, count_parameters
from graftlm.config import Embeddings, RunConfig
from graftlm.distributed.groups import group_sizes
from graftlm.distributed.loading import needs_whole
from graftlm.errors import ModelError
from graftlm.models.capabilities import capabilities
from graftlm.models.host_layers import layer_sizes
from graftlm.planning.baseline_memory import framework_memory
from graftlm.planning.calibration import Calibration, calibrate
from graftlm.planning.data_sheet import UNCERTAIN, speed_of
from graftlm.planning.fake_model import without_tensors
from graftlm.planning.largest_batch import laid, stacked
from graftlm.planning.ranks import peak_of_rank, share_of
from graftlm.planning.source import Source
from graftlm.planning.timeline import COMPONENTS
from graftlm.planning.trace import BatchShape, Shortcuts, Trace, trace_step
from graftlm.system.cards import Card
from graftlm.system.placement import Placement
from graftlm.training.batching import most_positions
from graftlm.training.new_tokens import planned_tokens
from graftlm.training.resolve import changed, embeddings_of

if TYPE_CHECKING:
    from graftlm.planning.trial_run import Measured

__all__ = [
    "METHODS",
    "Distributed",
    "Method",
    "Offload",
    "Option",
    "Planner",
    "Setting",
    "as_setting",
]

Method = Literal["full", "lora", "qlora"]
Offload = Literal["none", "layers"]
Distributed = Literal["none", "ddp", "fsdp"]
METHODS: tuple[Method, ...] = ("full", "lora", "qlora")

Seconds = tuple[float | None, float | None]
"""A time and its uncertainty."""
SLOTS = 2
"""Layers on the card at once, if the others are in host memory; see `models/host_layers.py`."""
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
    offload: Offload = "none"
    distributed: Distributed = "none"

    def applied(self, config: RunConfig) -> RunConfig:
        """``config`` with this setting in it. What a plan leaves on the card stays ``auto``."""
        offload = "layers" if self.offload == "layers" else config.model.offload
        config = changed(
            config,
            "train",
            gradient_checkpointing=self.gradient_checkpointing,
            micro_batch_tokens=self.micro_batch_tokens,
        )
        config = changed(config, "data", max_length=self.max_length)
        config = changed(config, "model", embeddings=self.embeddings, offload=offload)
        update: dict[str, str] = {"method": self.method}
        if self.distributed != "none":
            update["distributed"] = self.distributed
        return config.model_copy(update=update)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option(Setting):
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
        source: the base model.
        config: the run's settings.
        limit: the memory limit in bytes.
        placement: the planned device.
        lengths: tokens of each row of the data, if known.
        card: the data sheet of the device.
        processes: how many train the model together; the limit is that of each.
    """

    def __init__(
        self,
        source: Source,
        config: RunConfig,
        limit: int,
        placement: Placement,
        lengths: Sequence[int] = (),
        card: Card | None = None,
        processes: int = 1,
    ) -> None:
        self.card, self.processes = card, processes
        self.source, self.config, self.limit = source, config, limit
        self.placement, self.lengths = placement, sorted(lengths)
        self._traces: dict[tuple[Method, bool, Embeddings, BatchShape], Trace] = {}
        self._shortcuts = Shortcuts(source.architecture, config)

    @functools.cached_property
    def _framework(self) -> Measured | None:
        return framework_memory(self.source.folder) if self.placement.runs_on_cpu else None

    @functools.cached_property
    def _speed(self) -> Calibration | None:
        if self.placement.runs_on_cpu:
            return calibrate()
        return None if self.card is None else speed_of(self.card)

    def _layer_sizes(self, config: RunConfig) -> list[int]:
        """Bytes of each layer that would lie in host memory."""
        model = without_tensors(self.source.architecture, config, self.source.dtype(config))
        sizes = layer_sizes(model.requires_grad_(False))
        if not sum(sizes):
            raise ModelError(f"model.offload=layers: {type(model).__name__} has no such layers")
        return sizes

    def _groups(self, config: RunConfig) -> list[int]:
        """Bytes of the frozen tensors that are gathered together."""
        dtype = self.source.dtype(config)
        return group_sizes(without_tensors(self.source.architecture, config, dtype), dtype)

    def _seconds(self, trace: Trace) -> Seconds:
        """The time to compute a step. Processes on a CPU share its cores; exchange is not in it."""
        if not self._speed:
            return None, None
        seconds, uncertainty = self._speed.seconds(trace.cost)
        times = self.processes if self.placement.runs_on_cpu else 1
        return times * seconds, times * uncertainty

    def _with_transfers(self, seconds: Seconds, nbytes: float) -> Seconds:
        """The time of a step if ``nbytes`` cross the link to the card while it computes."""
        if self.card is None or seconds[0] is None or seconds[1] is None:
            return None, None
        crossing = nbytes / self.card.link
        return max(seconds[0], crossing), max(seconds[1], UNCERTAIN * crossing)

    @functools.cached_property
    def _end_to_end(self) -> bool:
        """Whether rows are laid end to end. Assumes that the model keeps them apart, as most do."""
        if not self.placement.rows_end_to_end:
            return False
        can = capabilities(without_tensors(self.source.architecture, self.config))
        return can.attends_by_blocks and can.takes_positions

    @property
    def _rows(self) -> int:
        """Rows of a batch in one process."""
        return -(-self.config.train.batch_size // self.processes)

    def at_once(self, setting: Setting) -> int:
        """Maximum positions of a micro-batch with rows of the maximum length."""
        whole = self._rows * setting.max_length
        return min(self.placement.positions_at_once(setting.micro_batch_tokens) or whole, whole)

    def shape(self, setting: Setting) -> BatchShape:
        """The largest possible micro-batch of ``setting``, in the run's layout."""
        most, train = most_positions(self.source.architecture), self.config.train
        kept = [length for length in self.lengths if length <= setting.max_length]
        sequences = 1
        if self.config.data.packing:
            mean = statistics.fmean(kept) if kept else setting.max_length
            sequences = max(2, round(setting.max_length / mean))
        if sequences > 1 or not kept:
            kept = [setting.max_length]
        at_once = self.placement.positions_at_once(setting.micro_batch_tokens)
        if at_once is not None and self._end_to_end:
            shape = laid(kept, self._rows, at_once, most, sequences)
        else:
            shape = stacked(kept, self._rows, at_once, most, sequences)
        passes = shape.passes * train.gradient_accumulation_steps
        return dataclasses.replace(shape, passes=passes)

    def _trainable(self, config: RunConfig, trace: Trace) -> int:
        """What trains in the run; with `lora.rank: auto` the trace is of a wider probe."""
        if config.method == "full" or not config.lora.probe_ranks:
            return trace.trainable_parameters
        model = without_tensors(self.source.architecture, config, self.source.dtype(config))
        add_lora(model, planned_tokens(config, model))
        return count_parameters(model).trainable

    def option(self, setting: Setting) -> Option:
        """Predict ``setting``."""
        shape, config = self.shape(setting), setting.applied(self.config)
        key = setting.method, setting.gradient_checkpointing, setting.embeddings, shape
        if key not in self._traces:
            self._traces[key] = trace_step(
                self.source.architecture,
                config,
                shape,
                self.source.dtype(config),
                self.placement.device,
                self._shortcuts,
            )
        trace = self._traces[key]
        share, peak = 1, trace.peak
        if self.processes > 1:
            sharded = setting.distributed == "fsdp"
            share = self.processes if sharded and needs_whole(config) is None else 1
            peak = peak_of_rank(
                trace,
                self.processes,
                self._groups(config) if sharded else (),
                keeps_buffer=not self.placement.runs_on_cpu,
            )
        components, peak_at = dict(peak.components), peak.place
        if self._framework:  # a GPU receives the finished model
            base = components["framework"] = self._framework.resident_bytes
            weights = trace.weight_bytes + self.source.loading_bytes(config)
            loaded = base + share_of(weights, share)
            loading = max(self._framework.loading_peak_bytes, loaded)
            if loading > sum(components.values()):
                held = ("framework", "weights", "quantization_state")
                components = {name: components.get(name, 0) for name in held}
                components["temporary"] = max(0, loading - sum(components.values()))
                peak_at = "loading"
        seconds = self._seconds(trace)
        if setting.offload == "layers":
            sizes = self._layer_sizes(config)
            # Both slots hold codes and scales alike.
            stored = sum(components.pop(name, 0) for name in ("weights", "quantization_state"))
            components["weights"] = stored - sum(sizes) + SLOTS * max(sizes)
            seconds = self._with_transfers(seconds, 2 * sum(sizes) * shape.passes)
        total = sum(components.values())
        return Option(
            **dataclasses.asdict(setting),
            rows=shape.rows,
            length=shape.length,
            predicted_peak_bytes=total,
            components={name: components.get(name, 0) for name in COMPONENTS},
            peak_at=peak_at,
            trainable_parameters=self._trainable(config, trace),
            seconds_per_step=seconds[0],
            seconds_uncertainty=seconds[1],
            fits=total <= self.limit * (1 - ROOM),
        )


def as_setting(config: RunConfig, method: Method, checkpointing: bool) -> Setting:
    """The run's own settings, with another method and checkpointing."""
    offload: Offload = "layers" if config.model.offload == "layers" else "none"
    return Setting(
        method,
        checkpointing or offload == "layers",
        config.train.micro_batch_tokens,
        config.data.max_length,
        embeddings_of(config.model_copy(update={"method": method})),
        offload,
    )
