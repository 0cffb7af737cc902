"""Which rows each rank computes."""

from __future__ import annotations

import random

import pytest

from graftlm.config import RunConfig, validate
from graftlm.distributed.refusals import require_supported
from graftlm.distributed.split import batches_of_rank, rows_of_rank
from graftlm.distributed.streams import seed_of_rank
from graftlm.errors import ConfigError
from graftlm.system.processes import Processes


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 9])
def test_every_row_of_a_step_belongs_to_exactly_one_rank(world_size: int) -> None:
    draw = random.Random(world_size)
    lengths = [draw.randint(1, 300) for _ in range(40)]
    batches = [[3, 1, 4], [15, 9, 2], [6]]
    parts = [batches_of_rank(batches, lengths, rank, world_size) for rank in range(world_size)]
    rows = [row for part in parts for batch in part for row in batch]
    assert sorted(rows) == sorted(row for batch in batches for row in batch)
    size = -(-3 // world_size)
    assert all(len(batch) <= max(size, 3 * (world_size == 1)) for part in parts for batch in part)


def test_one_rank_computes_the_batches_as_they_are() -> None:
    assert batches_of_rank([[5, 2], [7]], [1] * 8, 0, 1) == [[5, 2], [7]]


def test_ranks_get_about_the_same_number_of_tokens() -> None:
    draw = random.Random(0)
    lengths = [draw.randint(1, 300) for _ in range(64)]
    loads = [sum(lengths[row] for row in rows_of_rank(lengths, rank, 4)) for rank in range(4)]
    assert max(loads) - min(loads) <= max(lengths)


def test_ranks_draw_from_streams_of_their_own() -> None:
    seeds = [seed_of_rank(7, rank, step) for rank in range(4) for step in (0, 5)]
    assert seeds[0] == 7
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_what_several_processes_cannot_do_is_refused_at_once() -> None:
    tree = {
        "distributed": "none",
        "data": {"train": "-"},
        "train": {"batch_size": 1},
    }
    config = validate(RunConfig, tree)
    require_supported(config, Processes())
    with pytest.raises(ConfigError) as refused:
        require_supported(config, Processes(0, 2, 0, 2))
    assert [problem.split()[0].split("=")[0] for problem in refused.value.problems] == [
        "distributed",
        "rows",
        "a",
    ]
