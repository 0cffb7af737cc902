"""`lora.rank: auto`: short runs move rank to where the adapters use it, for the same parameters.

    wide     the adapters at `WIDER` times their rank, trained for `STEPS` steps
    S        the singular values of each layer's ΔW = s B A afterwards, by falling size
    gain     S_i² / (in + out)        what direction i has moved, for each parameter of it

Of all directions of all layers those with the largest gain are taken, as many as the budget has
parameters for; every layer keeps one. EVA redistributes ranks in the same way, by the variance of
the inputs; here it is the update itself that is asked. The scaling of each layer stays: alpha
follows the rank.

Then the uniform ranks and the chosen ones train for the same `STEPS` steps over the same rows, and
the chosen ones are taken only if their held-out loss is lower. The cost is `3 · STEPS` steps and
three passes over `ROWS` rows. The wide adapters take the most memory; a plan has room for them.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from graftlm.adapters import lora_config, lora_modules
from graftlm.adapters.adapter import Adapter
from graftlm.adapters.inject import remove
from graftlm.adapters.layers import linear_shape
from graftlm.adapters.lora_linear import LoRALinear
from graftlm.config import LoRAConfig
from graftlm.errors import ConfigError
from graftlm.training.objective import Objective
from graftlm.training.rate_probe import ROWS, STEPS, judging_rows, loss_at
from graftlm.training.run import Run

__all__ = ["PROBES", "WIDER", "RankProbe", "allocate", "wide", "widest", "with_probed_ranks"]

WIDER = 2
PROBES = 3
"""Short runs at most."""


@dataclasses.dataclass(frozen=True)
class RankProbe:
    """What a probe found.

    Attributes:
        uniform: the held-out loss with the ranks of the request.
        chosen: the held-out loss with the moved ranks.
        ranks: the moved ranks, by module.
        steps: the steps of each short run.
        rows: the rows that judged.
    """

    uniform: float
    chosen: float
    ranks: dict[str, int]
    steps: int
    rows: int

    @property
    def pays(self) -> bool:
        """Whether the moved ranks are taken."""
        return self.chosen < self.uniform

    def __str__(self) -> str:
        took = "took them" if self.pays else "kept the uniform ones"
        return (
            f"ranks: {self.steps} steps each, judged on {self.rows} rows: uniform → "
            f"{self.uniform:.4f}, {min(self.ranks.values())} to {max(self.ranks.values())} for as "
            f"many parameters → {self.chosen:.4f}; {took}"
        )


def allocate(values: Mapping[str, Tensor], costs: Mapping[str, int], budget: int) -> dict[str, int]:
    """The rank of each layer: at least 1, those of the largest gain within the budget.

    Args:
        values: the singular values of each layer's update, by falling size.
        costs: the parameters of one rank of it.
        budget: parameters in all.
    """
    ranks = dict.fromkeys(values, 1)
    left = budget - sum(costs[name] for name in values)
    gains = sorted(
        (-(float(value) ** 2) / costs[name], name, place)
        for name, own in values.items()
        for place, value in enumerate(own.tolist()[1:], start=1)
    )
    for _, name, place in gains:
        if ranks[name] == place and costs[name] <= left:
            ranks[name] += 1
            left -= costs[name]
    return ranks


def with_probed_ranks(run: Run, adapt: Callable[[LoRAConfig], None]) -> Run:
    """``run`` with the ranks that a probe chooses; says on stderr what it found.

    Args:
        run: the run before its first step, with its adapters.
        adapt: puts adapters with these settings on the model, after seeding.

    Raises:
        ConfigError: the objective measures rows beforehand, or there are no rows to judge on.
    """
    if type(run.objective).measure is not Objective.measure:
        raise ConfigError(
            f"lora.rank=auto: the objective {run.objective.name!r} measures its rows before it "
            "trains, which a probe does not; set the rank"
        )
    asked, rng = run.config.lora, run.placement.rng_state()
    before = _low_rank(run)
    costs = {name: sum(_sides(module)) for name, module in before.items()}
    budget = sum(m.rank * costs[name] for name, m in before.items())
    steps = min(STEPS, run.total_steps)
    judges = judging_rows(run, steps, "lora.rank")

    def trained(lora: LoRAConfig) -> float:
        remove(run.model)
        adapt(lora)
        parameters = {n: p for n, p in run.model.named_parameters() if p.requires_grad}
        return loss_at(run, run.config.train.learning_rate, steps, judges, parameters)

    exact = _with_ranks(asked, before, {name: m.rank for name, m in before.items()})
    uniform = trained(exact)
    trained(_with_ranks(asked, before, {name: wide(m) for name, m in before.items()}))
    ranks = allocate({n: _values(m) for n, m in _low_rank(run).items()}, costs, budget)
    chosen = trained(_with_ranks(asked, before, ranks))
    found = RankProbe(uniform, chosen, ranks, steps, min(ROWS, len(judges)))
    print(found, file=sys.stderr)
    remove(run.model)
    adapt(_with_ranks(asked, before, ranks) if found.pays else exact)
    run.placement.set_rng_state(rng)
    made = lora_config(run.model)
    final = asked.model_copy(
        update={
            "probe_ranks": False,
            **{name: getattr(made, name) for name in ("rank", "alpha", "targets")},
            **{name: getattr(made, name) for name in ("rank_pattern", "alpha_pattern")},
            "exclude": (),
            "layers": (),
            "layers_pattern": (),
        }
    )
    remove(run.model)
    adapt(final)  # as a run with these settings begins
    config: Any = run.config.model_copy(update={"lora": final})
    return dataclasses.replace(run, config=config)


def widest(asked: LoRAConfig) -> LoRAConfig:
    """The request with the ranks of the wide run, which takes the most memory."""
    rank, alpha = WIDER * asked.rank, WIDER * asked.alpha
    return asked.model_copy(update={"rank": rank, "alpha": alpha, "probe_ranks": False})


def wide(adapter: Adapter) -> int:
    """The rank of a layer in the wide run."""
    return min(WIDER * adapter.rank, min(_sides(adapter)))


def _low_rank(run: Run) -> dict[str, LoRALinear]:
    found = {name: m for name, m in lora_modules(run.model).items() if m.rank}
    other = [name for name, module in found.items() if not isinstance(module, LoRALinear)]
    if other:
        raise ConfigError(
            f"lora.rank=auto moves rank between linear layers, and {other[0]} is none: leave it "
            "out of the targets, or set the rank"
        )
    return found  # type: ignore[return-value]


def _sides(adapter: Adapter) -> tuple[int, int]:
    sides = linear_shape(adapter.base)
    assert sides is not None, "only linear layers are here"
    return sides


def _values(adapter: LoRALinear) -> Tensor:
    """The singular values of ΔW, from two thin QR decompositions."""
    A, B = (factor.detach().float().cpu() for factor in adapter.factors())
    values: Tensor = torch.linalg.svdvals(torch.linalg.qr(B).R @ torch.linalg.qr(A.T).R.T)
    return values[: adapter.rank] * abs(adapter.scaling)


def _with_ranks(
    asked: LoRAConfig, layers: Mapping[str, Adapter], ranks: Mapping[str, int]
) -> LoRAConfig:
    """The request with these ranks, each layer's scaling as it was."""

    def alpha(name: str) -> float:
        ratio = ranks[name] / layers[name].rank
        return layers[name].alpha * (math.sqrt(ratio) if asked.use_rslora else ratio)

    return asked.model_copy(
        update={
            "targets": tuple(layers),
            "rank_pattern": {f"^{re.escape(name)}": ranks[name] for name in layers},
            "alpha_pattern": {f"^{re.escape(name)}": alpha(name) for name in layers},
            "exclude": (),
            "layers": (),
            "layers_pattern": (),
            "probe_ranks": False,
        }
    )
