"""A warning before a run whose weights can hardly move.

AdamW changes a weight by about the learning rate in a step, whatever the size of the gradient. So

    reach = Σ_s learning rate of step s

is about how far a weight can come in the whole run. The second matrix of an adapter starts at zero:
after 13 steps at 2e-4 it is still near 0.001, and the model answers as before.
"""

from __future__ import annotations

import math
import sys

from graftlm.config import ResolvedConfig
from graftlm.training.schedule import learning_rate_factor

__all__ = ["reach", "say_if_too_few", "too_few_updates"]

LEAST_REACH = {"lora": 0.004, "qlora": 0.004, "full": 0.0002}
"""Below this a run taught a model nothing that its answers show. `full` begins with weights that
are already useful; the factors of an adapter begin at zero."""


def reach(config: ResolvedConfig) -> float:
    """The sum of the learning rate over all steps of a run."""
    train = config.train
    shape = (train.steps, train.warmup_ratio, train.schedule)
    return train.learning_rate * sum(
        learning_rate_factor(step, *shape) for step in range(min(train.steps, 100_000))
    )


def say_if_too_few(config: ResolvedConfig) -> None:
    """Print `too_few_updates` on stderr."""
    if said := too_few_updates(config):
        print(said, file=sys.stderr)


def too_few_updates(config: ResolvedConfig) -> str:
    """What to say of a run that is too short to learn from; empty if it is long enough."""
    least, train = LEAST_REACH[config.method], config.train
    if reach(config) >= least:
        return ""
    more = math.ceil(1.25 * train.steps * least / reach(config))  # the warm-up grows with them
    return (
        f"{train.steps:,} updates at a peak learning rate of {train.learning_rate:g} are too few "
        f"for the model to learn from. Take about {more:,} (--steps, --epochs, or a smaller "
        "--batch-size), or a higher --learning-rate."
    )
