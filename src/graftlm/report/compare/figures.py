"""The figures of a comparison: a column per variant, each value with its spread over seeds."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from graftlm.report.compare.variants import Variant
from graftlm.report.curves import Curve

__all__ = ["Figures", "Spread", "figures_of"]

LEAST_POINTS = 5
"""Points of a curve, with the one before training, that show whether it still falls."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """A value that was measured once per seed.

    Attributes:
        mean: over the seeds.
        deviation: sample standard deviation over the seeds; ``None`` when there is one seed.
        count: seeds.
    """

    mean: float
    deviation: float | None = None
    count: int = 1

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, len(values))

    def tells_apart(self, other: Spread) -> bool | None:
        """Whether the two means differ by more than two standard errors; ``None``: one seed."""
        if self.deviation is None or other.deviation is None:
            return None
        error = math.sqrt(self.deviation**2 / self.count + other.deviation**2 / other.count)
        return abs(self.mean - other.mean) > 2 * error


@dataclasses.dataclass(frozen=True)
class Figures:
    """One column.

    Attributes:
        name: of the variant.
        method: ``full``, ``lora`` or ``qlora``.
        rank: of its adapters, if it has any.
        seeds: runs behind each mean.
        tokens: read in training, per run, the first seed's.
        peak_memory: bytes of the training process.
        seconds: in training steps.
        trainable_parameters: of the model.
        artifact_bytes: size of the result on disk.
        train_loss: of the final model on training rows, nats a token.
        eval_before: held-out loss before training.
        eval_loss: held-out loss of the final model.
        gap: held-out minus training loss.
        outside_before: loss on text outside the task, before.
        outside_after: the same, after.
        forgetting: after minus before.
        exact_match: share of held-out rows with the right answer, if requested.
        field_accuracy: share of the records' fields that are right, for JSON answers.
        planned: the components of the peak in the plan, in bytes; empty without a plan.
        steps: of each run; 0 if unknown.
        late: share of the whole fall of the held-out loss that came in the last quarter of the
            steps; ``None`` with too few measurements, or if the loss did not fall.
    """

    name: str
    method: str
    rank: int | None
    seeds: int
    tokens: int
    peak_memory: Spread
    seconds: Spread
    trainable_parameters: Spread
    artifact_bytes: Spread
    train_loss: Spread
    eval_before: Spread
    eval_loss: Spread
    gap: Spread
    outside_before: Spread
    outside_after: Spread
    forgetting: Spread
    exact_match: Spread | None = None
    field_accuracy: Spread | None = None
    planned: Mapping[str, int] = dataclasses.field(default_factory=dict)
    steps: int = 0
    late: float | None = None


def figures_of(
    variant: Variant,
    runs: Sequence[tuple[dict[str, Any], dict[str, Any]]],
    curves: Sequence[Curve] = (),
) -> Figures:
    """The column of ``variant``.

    Args:
        variant: the variant.
        runs: (`summary.json`, `measured.json`) a seed.
        curves: the held-out loss of each run.
    """

    def of(name: str) -> Spread:
        return Spread.of([float(summary[name]) for summary, _ in runs])

    def measured_spread(name: str) -> Spread:
        return Spread.of([float(measured[name]) for _, measured in runs])

    def optional(name: str) -> Spread | None:
        return measured_spread(name) if all(name in measured for _, measured in runs) else None

    held, training = [s["eval_loss_after"] for s, _ in runs], [m["train_loss"] for _, m in runs]
    outside = [(m["outside_before"], m["outside_after"]) for _, m in runs]
    return Figures(
        name=variant.name,
        method=variant.method,
        rank=variant.rank,
        seeds=len(runs),
        tokens=int(runs[0][0]["tokens"]),
        peak_memory=of("peak_memory_bytes"),
        seconds=of("wall_seconds"),
        trainable_parameters=of("trainable_parameters"),
        artifact_bytes=measured_spread("artifact_bytes"),
        train_loss=measured_spread("train_loss"),
        eval_before=of("eval_loss_before"),
        eval_loss=of("eval_loss_after"),
        gap=Spread.of([h - t for h, t in zip(held, training, strict=True)]),
        outside_before=measured_spread("outside_before"),
        outside_after=measured_spread("outside_after"),
        forgetting=Spread.of([after - before for before, after in outside]),
        exact_match=optional("exact_match"),
        field_accuracy=optional("field_accuracy"),
        planned=next((m["planned"] for _, m in runs if m.get("planned")), {}),
        steps=int(runs[0][0]["steps"]),
        late=_mean_of([_late(curve) for curve in curves]),
    )


def _late(curve: Curve) -> float | None:
    """Share of the fall from the first to the last point after three quarters of the steps."""
    if len(curve) < LEAST_POINTS or curve[-1][1] >= curve[0][1]:
        return None
    at = 0.75 * curve[-1][0]
    (x0, y0), (x1, y1) = next(two for two in itertools.pairwise(curve) if two[1][0] >= at)
    there = y0 + (y1 - y0) * (at - x0) / (x1 - x0)
    return (there - curve[-1][1]) / (curve[0][1] - curve[-1][1])


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
