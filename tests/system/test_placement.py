"""The one place that knows the device: what it answers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graftlm.data import Example, collate
from graftlm.errors import ConfigError
from graftlm.system.placement import POSITIONS_AT_ONCE, Placement, placement_for, placement_of

CPU, GPU = Placement(torch.device("cpu")), Placement(torch.device("cuda:0"))


def test_a_cpu_computes_parts_laid_end_to_end_and_a_gpu_whole_batches() -> None:
    assert CPU.positions_at_once() == POSITIONS_AT_ONCE
    assert GPU.positions_at_once() is None
    assert CPU.positions_at_once(100) == GPU.positions_at_once(100) == 100
    assert CPU.positions_at_once(0) is None
    assert CPU.rows_end_to_end
    assert not GPU.rows_end_to_end


def test_a_run_starts_on_the_cpu_as_the_only_process() -> None:
    for request in ("auto", "cpu"):
        found = placement_for(request)
        assert (found.device.type, found.rank, found.world_size) == ("cpu", 0, 1)
        assert found.is_main
        assert found.runs_on_cpu
        assert found.exists
    with pytest.raises(ConfigError, match="device 'tpu': expected auto, cpu"):
        placement_for("tpu")
    other = Placement(torch.device("cpu"), rank=1, world_size=2)
    assert not other.is_main


def test_a_model_in_hand_decides_where_its_batches_go() -> None:
    there = placement_of(nn.Linear(2, 2, device="meta"))
    batch = there.move(collate([Example([1, 2], [True, True])], 0))
    assert batch.input_ids.device == batch.labels.device == torch.device("meta")


def test_the_random_state_comes_back() -> None:
    CPU.seed(3)
    state = CPU.rng_state()
    first = torch.rand(4)
    # A checkpoint that was taken where there is a GPU is restored where there is none.
    CPU.set_rng_state(state | {"cuda:0": torch.zeros(16, dtype=torch.uint8)})
    assert torch.equal(torch.rand(4), first)
    CPU.seed(3)
    assert torch.equal(torch.rand(4), first)


def test_memory_of_a_cpu_run_is_that_of_the_process() -> None:
    assert 0 < CPU.memory_now() <= CPU.peak_memory()
    assert CPU.free_memory() > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is not there")
def test_a_device_that_is_not_there_is_not_asked_for_its_memory() -> None:
    assert not GPU.exists
    with pytest.raises(ConfigError, match="say what it has"):
        GPU.free_memory()
