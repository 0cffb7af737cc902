"""`train.learning_rate: auto`: short runs from one state choose the learning rate.

    for each rate η of a grid, from the same weights, over the same rows:
        `STEPS` optimiser steps with peak rate η, by the schedule of the run
        L(η) = the mean loss on held-out rows
    η* = the smallest η with L(η) ≤ (1 + `AS_GOOD`) · min L

A short run likes a larger rate than a long one, so of rates that are as good the smallest is taken.
The grid has `GRID` rates, a factor of √10 apart, from below the default of the method upwards. It
is walked only as far as the loss falls: past the best rate a larger one is worse still.

The cost is at most `GRID · STEPS` steps and as many passes over `ROWS` rows. Trained weights are
kept in a file meanwhile, so that a probe needs no more memory than the run.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from typing import Any

import safetensors.torch
import torch

from graftlm.errors import ConfigError, TrainingError
from graftlm.files import temporary_folder
from graftlm.training.evaluation import mean_loss
from graftlm.training.objective import Objective
from graftlm.training.optimizer import adamw, set_learning_rate
from graftlm.training.resolve import changed, default_learning_rate
from graftlm.training.run import Run
from graftlm.training.step import train_step

__all__ = [
    "GRID",
    "ROWS",
    "STEPS",
    "Probe",
    "chosen",
    "grid",
    "judging_rows",
    "loss_at",
    "probe",
    "with_probed_rate",
]

GRID = 5
STEPS = 12
ROWS = 48
"""Held-out rows that a rate is judged on."""
AS_GOOD = 0.005
"""A loss within this share of the best one counts as equal."""


@dataclasses.dataclass(frozen=True)
class Probe:
    """What a probe found.

    Attributes:
        losses: the held-out loss after the steps, by rate; infinite where training failed.
        before: the held-out loss of the untrained adapters.
        rate: the chosen rate.
        steps: the steps at each rate.
        rows: the rows that judged.
    """

    losses: dict[float, float]
    before: float
    rate: float
    steps: int
    rows: int

    def __str__(self) -> str:
        tried = ", ".join(f"{rate:.2g} → {loss:.4f}" for rate, loss in self.losses.items())
        return (
            f"learning rate: {self.steps} steps each, judged on {self.rows} rows "
            f"({self.before:.4f} before): {tried}; took {self.rate:.2g}"
        )


def grid(middle: float) -> list[float]:
    """`GRID` rates around ``middle``, the default of the method, a factor of √10 apart."""
    return [float(f"{middle * 10 ** (k / 2):.2g}") for k in range(-1, GRID - 1)]


def chosen(losses: dict[float, float]) -> float:
    """The smallest rate whose loss is as good as the best."""
    best = min(losses.values())
    if not math.isfinite(best):
        raise TrainingError(
            f"no learning rate of {', '.join(f'{rate:g}' for rate in losses)} trained to a finite "
            "loss: check the rows and the model, or set train.learning_rate"
        )
    return min(rate for rate, loss in losses.items() if loss <= best * (1 + AS_GOOD))


def with_probed_rate(run: Run) -> Run:
    """``run`` with the learning rate that a probe chooses; says on stderr what it found."""
    found = probe(run)
    print(found, file=sys.stderr)
    config = changed(run.config, "train", learning_rate=found.rate)
    return dataclasses.replace(run, config=config)  # type: ignore[arg-type]


def probe(run: Run, rates: Sequence[float] = ()) -> Probe:
    """Try the rates of the grid, in place; afterwards the model and the generators are as before.

    Args:
        run: the run before its first step.
        rates: other rates to try, all of them.

    Raises:
        ConfigError: the objective measures rows beforehand, or there are no rows to judge on.
        TrainingError: no rate trains.
    """
    if type(run.objective).measure is not Objective.measure:
        raise ConfigError(
            f"train.learning_rate=auto: the objective {run.objective.name!r} measures its rows "
            "before it trains, which a probe does not; set the rate"
        )
    steps = min(STEPS, run.total_steps)
    judges = judging_rows(run, steps, "train.learning_rate")
    parameters = {name: p for name, p in run.model.named_parameters() if p.requires_grad}
    rng, batch = run.placement.rng_state(), run.config.train.batch_size
    before = mean_loss(run.objective, run.model, judges, batch)[0]
    tried = list(rates) or grid(default_learning_rate(run.config.method))
    losses: dict[float, float] = {}
    with temporary_folder("probe") as folder:
        file = folder / "start.safetensors"
        safetensors.torch.save_file(
            {name: p.detach().cpu().contiguous() for name, p in parameters.items()}, file
        )
        for rate in tried:
            losses[rate] = loss_at(run, rate, steps, judges, parameters)
            start = safetensors.torch.load_file(file)
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(start[name])
                    parameter.grad = None
            run.placement.set_rng_state(rng)
            if not rates and losses[rate] > min(losses.values()) * 1.05:
                break  # past the best: a larger rate would only be worse
    return Probe(losses, before, chosen(losses), steps, len(judges))


def loss_at(run: Run, rate: float, steps: int, judges: Sequence[Any], parameters: Any) -> float:
    """The held-out loss after ``steps`` steps at the peak rate ``rate``; infinite if it fails."""
    train = {"learning_rate": rate, "steps": steps}
    short = dataclasses.replace(run, config=changed(run.config, "train", **train))  # type: ignore[arg-type]
    trained = list(parameters.values())
    optimizer = adamw(short, trained)
    run.model.train()
    try:
        for step in range(steps):
            set_learning_rate(short, optimizer, step)
            batches = run.micro_batches(step, {})
            norm = run.config.train.max_grad_norm
            train_step(run.model, batches, optimizer, trained, norm, run.objective)
    except TrainingError:
        return math.inf
    loss = mean_loss(run.objective, run.model, judges, run.config.train.batch_size)[0]
    return loss if math.isfinite(loss) else math.inf


def judging_rows(run: Run, steps: int, setting: str) -> Sequence[Any]:
    """Rows to judge on: held-out ones, or else training rows that the probe's steps do not read."""
    if len(run.eval_examples):
        spread = max(1, len(run.eval_examples) // ROWS)
        return [run.eval_examples[i] for i in range(0, len(run.eval_examples), spread)][:ROWS]
    read = run.rows_of(steps)
    rest = [run.examples[i] for i in range(len(run.examples)) if i not in read][:ROWS]
    if not rest:
        raise ConfigError(
            f"{setting}=auto judges on rows that it does not train on, and there are none: give "
            "--eval-data, data.eval_fraction, or a value"
        )
    return rest
