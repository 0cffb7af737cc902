"""Which device a request means, and what is said about one that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from graftlm.errors import ConfigError
from graftlm.system import devices
from graftlm.system.devices import capability_fits, device_named, unusable_gpu
from graftlm.system.placement import Placement, candidates, out_of_memory, placement_for
from tests.oracles.fake_gpu import GIGABYTE, FakeGPU, put_in


@pytest.mark.parametrize(
    ("request_", "device"),
    [("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("mps", "mps:0"), ("xpu", "xpu:0")],
)
def test_a_request_names_one_device(request_: str, device: str) -> None:
    assert str(device_named(request_)) == device


def test_auto_names_none_and_anything_else_is_refused() -> None:
    assert device_named("auto") is None
    for wrong in ("gpu", "cuda:", "cuda:x", "cpu:1", "mps:1", "", "cuda:0,1", "CUDA"):
        with pytest.raises(ConfigError, match="expected auto, cpu, cuda"):
            device_named(wrong)


def test_auto_takes_the_card_with_the_most_room_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_in(monkeypatch, FakeGPU(free=(4 * GIGABYTE, 20 * GIGABYTE)))
    assert [str(one.device) for one in candidates()] == ["cuda:1", "cuda:0"]
    assert str(placement_for("auto", needed=8 * GIGABYTE).device) == "cuda:1"
    placement_for("auto", needed=8 * GIGABYTE)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("device: cuda:1 (Card 1), which has 20.0 GB free") == 1


def test_auto_takes_the_cpu_where_no_card_has_room_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_in(monkeypatch, FakeGPU(free=(4 * GIGABYTE,)))
    assert placement_for("auto", needed=8 * GIGABYTE).runs_on_cpu
    said = capsys.readouterr().err
    assert "cuda:0 (Card 0) has 4.0 GB free and 8.0 GB are needed" in said


def test_memory_that_the_allocator_keeps_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    put_in(monkeypatch, FakeGPU(free=(GIGABYTE,), allocated=3 * GIGABYTE, reserved=5 * GIGABYTE))
    card = Placement(torch.device("cuda:0"))
    assert card.free_memory() == 3 * GIGABYTE
    assert (card.memory_now(), card.peak_memory()) == (3 * GIGABYTE, 3 * GIGABYTE + 1)


def test_a_card_that_is_not_there_is_refused_with_those_that_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(
        ConfigError, match=r"torch finds no cuda device on this machine.*device=cpu"
    ):
        placement_for("cuda")
    put_in(monkeypatch, FakeGPU())
    assert str(placement_for("cuda").device) == "cuda:0"
    with pytest.raises(ConfigError, match="this machine has cuda:0"):
        placement_for("cuda:1")


def test_a_card_that_torch_was_not_built_for_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put_in(monkeypatch, FakeGPU(capability=(6, 1)))
    assert candidates() == []
    with pytest.raises(ConfigError, match=r"capability 6\.1.*install a torch that still has sm_61"):
        placement_for("cuda")


@pytest.mark.parametrize(
    ("capability", "built_for", "fits"),
    [
        ((7, 5), ("sm_75",), True),
        ((8, 9), ("sm_80", "sm_86"), True),
        ((8, 0), ("sm_86",), False),
        ((12, 0), ("sm_90", "compute_90"), True),
        ((12, 0), ("sm_90",), False),
        ((9, 0), ("sm_90a",), True),
        ((10, 0), ("sm_100",), True),
        ((9, 1), ("sm_90a", "compute_90a"), False),
        ((6, 1), ("sm_70", "compute_70"), False),
    ],
)
def test_code_runs_on_cards_of_its_major_version_and_portable_code_on_newer_ones(
    capability: tuple[int, int], built_for: tuple[str, ...], fits: bool
) -> None:
    assert capability_fits(capability, built_for) is fits


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_a_card_behind_a_torch_without_cuda_is_reported_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(devices, "_NVIDIA", (tmp_path / "absent", tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    devices.say_once.cache_clear()
    assert "was built without CUDA: install a CUDA build" in (unusable_gpu() or "")
    assert placement_for("auto").runs_on_cpu
    assert placement_for("auto").runs_on_cpu
    assert capsys.readouterr().err.count("NOTE: the GPU stays idle: this machine has an NVID") == 1
    placement_for("cpu")
    assert capsys.readouterr().err == ""
    with pytest.raises(ConfigError, match="install a CUDA build"):
        placement_for("cuda")


def test_a_card_that_the_driver_hides_is_reported_with_the_tool_that_shows_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(devices, "_NVIDIA", (tmp_path,))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("torch.version.cuda", "12.8")
    assert "nvidia-smi" in (unusable_gpu() or "")


def test_a_card_without_bfloat16_trains_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Placement(torch.device("cuda:0"))
    put_in(monkeypatch, FakeGPU(capability=(7, 5)))
    assert card.trains_in(torch.bfloat16) == torch.float16
    assert card.trains_in(torch.float32) == torch.float32
    put_in(monkeypatch, FakeGPU(capability=(8, 0)))
    assert card.trains_in(torch.bfloat16) == torch.bfloat16
    assert Placement(torch.device("cpu")).trains_in(torch.bfloat16) == torch.bfloat16


def test_a_checkpoint_has_the_random_state_of_the_used_card_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = put_in(monkeypatch, FakeGPU(free=(GIGABYTE, GIGABYTE)))
    gpu.states = {index: torch.full((16,), index + 1, dtype=torch.uint8) for index in range(2)}
    card = Placement(torch.device("cuda:1"))
    state = card.rng_state()
    assert state.keys() == {"cpu", "cuda:0"}
    assert int(state["cuda:0"][0]) == 2
    Placement(torch.device("cuda:0")).set_rng_state(state)  # another card of the kind goes on
    assert int(gpu.states[0][0]) == 2
    Placement(torch.device("cpu")).set_rng_state(state)


def test_a_seed_for_one_answer_leaves_the_random_state_as_it_was() -> None:
    here = Placement(torch.device("cpu"))
    here.seed(1)
    first = torch.rand(3)
    here.seed(1)
    with here.seeded(7):
        drawn = torch.rand(3)
    assert torch.equal(torch.rand(3), first)
    with here.seeded(7):
        assert torch.equal(torch.rand(3), drawn)


def test_memory_running_out_on_a_device_is_recognised() -> None:
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
    assert not out_of_memory(RuntimeError("shape mismatch"))
    assert not out_of_memory(ValueError("out of memory"))
