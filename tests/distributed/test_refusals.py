"""What several processes cannot do is refused by name, with what to do instead."""

from __future__ import annotations

import pytest

from graftlm.config import RunConfig, validate
from graftlm.errors import ConfigError


@pytest.mark.parametrize(
    "tree",
    [
        {"train": {"context_parallel_size": 2}},
        {"cp": 2},
        {"train": {"sequence_parallel": True}},
        {"tensor-parallel-size": 4},
        {"distributed": "context_parallel"},
        {"distributed": "tp"},
    ],
    ids=str,
)
def test_splitting_a_row_is_refused_with_what_to_do(tree: dict) -> None:
    with pytest.raises(ConfigError, match="A row has to fit on one device: set ") as refused:
        validate(RunConfig, tree)
    assert len(refused.value.problems) == 1


@pytest.mark.parametrize("tree", [{"train": {"stepz": 2}}, {"distributed": "both"}], ids=str)
def test_other_mistakes_are_not_taken_for_it(tree: dict) -> None:
    with pytest.raises(ConfigError) as refused:
        validate(RunConfig, tree)
    assert "A row has to fit" not in str(refused.value)
