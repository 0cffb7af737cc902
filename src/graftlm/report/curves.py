"""The curves of a run, from its `metrics.jsonl` and `summary.json`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Curve", "held_out_curve", "running_mean", "training_curve"]

Curve = list[tuple[float, float]]

_POINTS = 400
"""Longer curves are averaged into this number of points, because more are not visible."""


def training_curve(metrics: Sequence[Mapping[str, Any]], name: str = "loss") -> Curve:
    """``name`` over the steps, averaged into at most 400 points."""
    points = [(float(row["step"]), float(row[name])) for row in metrics if name in row]
    if len(points) <= _POINTS:
        return points
    edges = [round(i * len(points) / _POINTS) for i in range(_POINTS + 1)]
    return [
        (points[(first + last) // 2][0], sum(y for _, y in points[first:last]) / (last - first))
        for first, last in itertools.pairwise(edges)
    ]


def held_out_curve(metrics: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> Curve:
    """The held-out loss: before the first step, at each measurement, and at the end.

    With ``eval_steps`` the result is the best checkpoint, not the last one, and its loss is already
    one of the points. So the end is added only if there was no measurement during training.
    """
    points = [
        (float(row["step"]), float(row["eval_loss"])) for row in metrics if "eval_loss" in row
    ]
    before, after = summary.get("eval_loss_before"), summary.get("eval_loss_after")
    if before is not None:
        points.insert(0, (0.0, float(before)))
    if after is not None and not any("eval_loss" in row for row in metrics):
        points.append((float(summary["steps"]), float(after)))
    return points


def running_mean(curve: Curve, share: float = 0.08) -> Curve:
    """Each point replaced by the mean over ``share`` of the curve around it, less at the ends."""
    half = int(len(curve) * share / 2)
    if not half:
        return list(curve)
    means = []
    for index, (x, _) in enumerate(curve):
        reach = min(half, index, len(curve) - 1 - index)
        near = curve[index - reach : index + reach + 1]
        means.append((x, sum(y for _, y in near) / len(near)))
    return means
