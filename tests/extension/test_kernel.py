"""A kernel registered from outside is the one that runs, in a model, and doctor checks it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import graftlm
from graftlm.extend import implement, operators, withdraw
from graftlm.kernels import selfcheck

HERE = Path(__file__).parent


@pytest.fixture
def counted() -> Iterator[Any]:
    """The module of an outside user, its kernel installed."""
    spec = importlib.util.spec_from_file_location("counted_kernel", HERE / "counted_kernel.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    installed = module.install()
    yield module
    withdraw(installed)


def test_the_kernel_takes_at_most_sixty_lines_and_public_names() -> None:
    lines = (HERE / "counted_kernel.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60
    assert [line for line in lines if "graftlm" in line and "import" in line] == [
        "from graftlm.extend import implement"
    ]


def test_it_is_the_one_that_runs_in_a_step(tiny_llama: Path, counted: Any) -> None:
    model, _ = graftlm.load_model(tiny_llama, quantize="nf4")
    graftlm.add_lora(model, graftlm.LoRAConfig(rank=4))
    norms = 2 * 2 + 1  # two in each of two layers, and the last
    ids = torch.arange(1, 25).view(2, 12)
    counted.CALLS.clear()
    with torch.no_grad():
        mine = model(ids).logits
    assert len(counted.CALLS) == norms
    model.train()
    loss = model(ids).logits.float().logsumexp(-1).sum()
    assert len(counted.CALLS) == 2 * norms
    loss.backward()
    trained = [p.grad for p in model.parameters() if p.requires_grad]
    assert trained
    assert all(gradient is not None for gradient in trained)
    assert mine.shape == (2, 12, 260)


def test_what_it_declines_runs_as_before(counted: Any) -> None:
    operator = operators()["rms_norm"]
    short, long = torch.randn(3, 4096), torch.randn(3, 4100)
    assert operator.runs(short, torch.ones(4096), 0.0, 1e-6) == "counted"
    assert operator.runs(long, torch.ones(4100), 0.0, 1e-6) != "counted"


def test_doctor_checks_it(counted: Any) -> None:
    rows = [row for row in selfcheck() if row["runs"] == "counted"]
    assert rows
    assert all(row["operator"] == "rms_norm" and row["result"] == "ok" for row in rows)


def test_doctor_notices_a_wrong_one(counted: Any) -> None:
    def wrong(*arguments: Any) -> Any:
        y, r = counted.counted_rms_norm(*arguments)
        return 1.1 * y, r

    installed = implement("rms_norm", "cpu:0", wrong, label="wrong")
    try:
        rows = [row for row in selfcheck() if row["runs"] == "wrong"]
    finally:
        withdraw(installed)
    assert rows
    assert all(row["result"] == "WRONG" for row in rows)
