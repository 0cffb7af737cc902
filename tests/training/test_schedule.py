from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftlm.training.schedule import learning_rate_factor

SCHEDULES = ["constant", "linear", "cosine"]


@given(
    total=st.integers(1, 500),
    warmup=st.floats(0, 1),
    schedule=st.sampled_from(SCHEDULES),
)
def test_factor_stays_in_unit_interval_and_never_rises_after_warmup(total, warmup, schedule):
    factors = [learning_rate_factor(step, total, warmup, schedule) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)
    after = factors[math.ceil(warmup * total) :]
    assert all(later <= earlier for earlier, later in itertools.pairwise(after))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_factor_equals_transformers_one_step_later_in_warmup(schedule):
    """transformers starts its warm-up at zero, a wasted step; otherwise the same curve."""
    from transformers import get_scheduler

    total, warmup = 40, 10
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(schedule, optimizer, warmup, total)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    ours = [learning_rate_factor(step, total, warmup / total, schedule) for step in range(total)]
    assert ours[:warmup] == pytest.approx(rates[1 : warmup + 1])
    assert ours[warmup:] == pytest.approx(rates[warmup:])
