"""The extension itself: its tables, its refusals, its absence, its threads and its reach."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest
import torch

from graftlm import kernels, nf4
from graftlm.errors import ModelError
from graftlm.kernels import native, ops
from graftlm.kernels.nf4.codebook import nf4_levels

EXTENSION = native.extension()
needs_extension = pytest.mark.skipif(EXTENSION is None, reason="no extension in this installation")


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@needs_extension
def test_both_languages_have_the_same_levels() -> None:
    assert EXTENSION is not None
    assert torch.equal(torch.tensor(EXTENSION.nf4_levels()), nf4_levels())


@needs_extension
@pytest.mark.parametrize(
    "change",
    [
        {"codes": torch.zeros(10, dtype=torch.uint8)},
        {"codes": torch.zeros(1200, dtype=torch.int8)},
        {"absmax": torch.zeros(37, dtype=torch.uint8)},
        {"absmax": torch.zeros(38)},
        {"nested_absmax": torch.zeros(2)},
        {"offset": torch.zeros(1, dtype=torch.float64)},
        {"shape": (24, 101)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_corrupt_weight_is_refused_before_it_is_read(change: dict[str, object]) -> None:
    w4 = dataclasses.replace(nf4.quantize(torch.randn(24, 100)), **change)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="expected"):
        ops.linear(torch.randn(2, w4.shape[1]), w4)


def test_without_the_extension_the_reference_runs_and_says_so() -> None:
    code = """
import torch
from graftlm import kernels, nf4
from graftlm.kernels import ops
w4 = ops.quantize(torch.randn(64, 64))
x = torch.randn(3, 64)
torch.testing.assert_close(ops.linear(x, w4), x @ nf4.dequantize(w4).T)
assert kernels.status()['cpu'] == {"runs": "PyTorch reference", "because": "GRAFTLM_NATIVE=0"}
assert all(row["result"] == "ok" for row in kernels.selfcheck())
"""
    result = run(code, GRAFTLM_NATIVE="0")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_missing_extension_is_said_once() -> None:
    code = """
import sys
sys.modules["graftlm._native"] = None
from graftlm import kernels
kernels.status(); kernels.status()
"""
    result = run(code)
    assert result.returncode == 0
    assert result.stderr.count("runs without its native kernels") == 1


@needs_extension
def test_an_unknown_level_is_refused_by_name() -> None:
    code = "from graftlm import kernels; kernels.status()"
    result = run(code, GRAFTLM_CPU="avx9")
    assert "avx9" in result.stderr
    assert "scalar" in result.stderr


@needs_extension
def test_the_level_can_be_chosen() -> None:
    code = "from graftlm import kernels; print(kernels.status()['cpu']['level'])"
    assert run(code, GRAFTLM_CPU="scalar").stdout == "scalar\n"


@needs_extension
def test_a_forked_child_multiplies() -> None:
    code = """
import os, torch
from graftlm.kernels import nf4
from graftlm.kernels import ops
torch.set_num_threads(2)
w4, x = nf4.quantize(torch.randn(512, 512)), torch.randn(64, 512)
y = ops.linear(x, w4)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(ops.linear(x, w4), y) else 1)
_, status = os.waitpid(child, 0)
assert status == 0
"""
    assert run(code).returncode == 0


@needs_extension
def test_offsets_past_two_to_the_31() -> None:
    rows, cols, block_size = 2**15 + 1, 2**16, 4096
    codes = torch.zeros(rows * cols // 2, dtype=torch.uint8)  # pages of zeros are not stored
    codes[-cols // 2 :] = torch.randint(0, 256, (cols // 2,), dtype=torch.uint8)
    absmax = torch.ones(rows * cols // block_size)
    w4 = nf4.NF4Weight(codes, absmax, None, None, (rows, cols), torch.float32, block_size)
    last = dataclasses.replace(
        w4, codes=codes[-cols // 2 :], absmax=absmax[-cols // block_size :], shape=(1, cols)
    )
    x = torch.randn(1, cols)
    truth = x.double() @ nf4.dequantize(last, torch.float64).T
    torch.testing.assert_close(ops.linear(x, w4)[:, -1:].double(), truth, rtol=1e-5, atol=1e-2)


def test_selfcheck_finds_nothing_wrong() -> None:
    assert [row for row in kernels.selfcheck() if row["result"] != "ok"] == []
