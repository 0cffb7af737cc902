"""Predicts options. One option needs one trace; a plan needs a few."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from graftlm.adapters import add_lora, count_parameters
from graftlm.config import Embeddings, RunConfig, contradictions
from graftlm.distributed.groups import group_sizes
from graftlm.distributed.loading import needs_whole
from graftlm.errors import ModelError, TargetError
from graftlm.models.capabilities import capabilities
from graftlm.models.host_layers import layer_sizes
from graftlm.planning.baseline_memory import framework_memory
from graftlm.planning.calibration import UNCERTAIN, Calibration, calibrate, speed_of
from graftlm.planning.fake_model import without_tensors
from graftlm.planning.largest_batch import largest_batch
from graftlm.planning.option import ROOM, Method, Option, Setting
from graftlm.planning.ranks import peak_of_rank, share_of
from graftlm.planning.source import Source
from graftlm.planning.timeline import COMPONENTS
from graftlm.planning.trace import BatchShape, Shortcuts, Trace, trace_step
from graftlm.system.cards import Card
from graftlm.system.placement import Placement
from graftlm.training.batching import most_positions
from graftlm.training.new_tokens import planned_tokens

if TYPE_CHECKING:
    from graftlm.planning.trial_run import Measured

__all__ = ["Planner"]

SLOTS = 2
"""Layers on the card at once, if the others are in host memory; see `models/host_layers.py`."""


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
        progress: is called with a description of the current work.

    Attributes:
        options: what was predicted, in order; ``None``: training refuses the setting.
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
        progress: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.card, self.processes, self.progress = card, processes, progress
        self.source, self.config, self.limit = source, config, limit
        self.placement, self.lengths = placement, lengths
        self.options: dict[Setting, Option | None] = {}
        self._traces: dict[tuple[Method, bool, Embeddings, BatchShape], Trace] = {}
        self._shortcuts = Shortcuts(source.architecture, config)

    @functools.cached_property
    def _framework(self) -> Measured | None:
        if not self.placement.runs_on_cpu:
            return None
        self.progress("measuring the memory of a process without a model")
        return framework_memory(self.source.folder)

    @functools.cached_property
    def _speed(self) -> Calibration | None:
        if self.placement.runs_on_cpu:
            self.progress("measuring the speed of this machine")
            return calibrate()
        return None if self.card is None else speed_of(self.card)

    def _model(self, config: RunConfig) -> Any:
        return without_tensors(self.source.architecture, config, self.source.dtype(config))

    def _seconds(self, trace: Trace, moved: float) -> tuple[float | None, float | None]:
        """The time to compute a step, and its uncertainty, if the device's speed is known.

        Processes on a CPU share its cores; what they exchange is not in it. To a card ``moved``
        bytes cross the link while it computes.
        """
        if not self._speed:
            return None, None
        seconds, uncertainty = self._speed.seconds(trace.cost)
        if self.card is None:
            return self.processes * seconds, self.processes * uncertainty
        crossing = moved / self.card.link
        return max(seconds, crossing), max(uncertainty, UNCERTAIN * crossing)

    @functools.cached_property
    def _end_to_end(self) -> bool:
        """Whether rows are laid end to end. Assumes that the model keeps them apart, as most do."""
        if not self.placement.rows_end_to_end:
            return False
        can = capabilities(self._model(self.config))
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
        return largest_batch(
            setting.applied(self.config),
            self.lengths,
            self._rows,
            self.placement.positions_at_once(setting.micro_batch_tokens),
            most_positions(self.source.architecture),
            self._end_to_end,
        )

    def _trainable(self, config: RunConfig, trace: Trace) -> int:
        """What trains in the run; with `lora.rank: auto` the trace is of a wider probe."""
        if config.method == "full" or not config.lora.probe_ranks:
            return trace.trainable_parameters
        model = self._model(config)
        add_lora(model, planned_tokens(config, model))
        return count_parameters(model).trainable

    def option(self, setting: Setting) -> Option | None:
        """Predict a setting, once; ``None`` if training refuses it.

        It refuses what contradicts the request, and 8 bits for embeddings that have no such form;
        this is an error if the request asks for them.

        A model that cannot recompute its activations does without, unless that was asked for.
        """
        asks_to_recompute = self.config.train.gradient_checkpointing is True
        if not asks_to_recompute and not self.source.can_recompute:
            setting = dataclasses.replace(setting, gradient_checkpointing=False)
        if setting not in self.options:
            config = setting.applied(self.config)
            try:
                refused = contradictions(config)
                self.options[setting] = None if refused else self._predicted(setting, config)
            except (ModelError, TargetError):
                if self.config.model.embeddings != "auto" or setting.embeddings == "keep":
                    raise
                self.options[setting] = None
        return self.options[setting]

    def _trace(self, setting: Setting, config: RunConfig, shape: BatchShape) -> Trace:
        key = setting.method, setting.gradient_checkpointing, setting.embeddings, shape
        said = f"{setting.method}, embeddings {setting.embeddings}, {setting.max_length} long"
        self.progress(said)
        if key not in self._traces:
            self._traces[key] = trace_step(
                self.source.architecture,
                config,
                shape,
                self.source.dtype(config),
                self.placement.device,
                self._shortcuts,
                lambda where: self.progress(f"{said}: {where}"),
            )
        return self._traces[key]

    def _predicted(self, setting: Setting, config: RunConfig) -> Option:
        shape = self.shape(setting)
        trace = self._trace(setting, config, shape)
        share, peak, moved = 1, trace.peak, 0.0
        if self.processes > 1:
            sharded = setting.distributed == "fsdp"
            share = self.processes if sharded and needs_whole(config) is None else 1
            groups = group_sizes(self._model(config), self.source.dtype(config)) if sharded else ()
            on_card = not self.placement.runs_on_cpu
            peak = peak_of_rank(trace, self.processes, groups, keeps_buffer=on_card)
        components, peak_at = dict(peak.components), peak.place
        if self._framework:  # a GPU receives the finished model
            base = components["framework"] = self._framework.resident_bytes
            weights = trace.weight_bytes + self.source.loading_bytes(config)
            loading = max(self._framework.loading_peak_bytes, base + share_of(weights, share))
            if loading > sum(components.values()):
                held = ("framework", "weights", "quantization_state")
                components = {name: components.get(name, 0) for name in held}
                components["temporary"] = max(0, loading - sum(components.values()))
                peak_at = "loading"
        if setting.offload == "layers":
            model = self._model(config).requires_grad_(False)
            sizes = layer_sizes(model)
            if not sum(sizes):
                raise ModelError(f"model.offload=layers: {type(model).__name__} has no such layers")
            # Both slots hold codes and scales alike.
            stored = sum(components.pop(name, 0) for name in ("weights", "quantization_state"))
            components["weights"] = stored - sum(sizes) + SLOTS * max(sizes)
            moved = 2 * sum(sizes) * shape.passes
        seconds, uncertainty = self._seconds(trace, moved)
        total = sum(components.values())
        return Option(
            **dataclasses.asdict(setting),
            rows=shape.rows,
            length=shape.length,
            predicted_peak_bytes=total,
            components={name: components.get(name, 0) for name in COMPONENTS},
            peak_at=peak_at,
            trainable_parameters=self._trainable(config, trace),
            seconds_per_step=seconds,
            seconds_uncertainty=uncertainty,
            fits=total <= self.limit * (1 - ROOM),
        )
