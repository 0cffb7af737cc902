"""What Python and C++ must agree on: names of arguments, numbers of types, sizes."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch

from graftlm.kernels import native
from graftlm.kernels.native import attention, compiled, cross_entropy, linear
from graftlm.kernels.native.arguments import FROZEN, STORED, UPDATE, Factors, Frozen, LowRank
from graftlm.kernels.nf4 import quantize
from graftlm.kernels.nf4.chunks import BLOCK_SIZES
from graftlm.kernels.nf4.double_quant import GROUP_SIZE
from graftlm.kernels.nf4.quantize import SMALLEST_ABSMAX, ZERO_CODE

EXTENSION: Any = native.extension()
pytestmark = pytest.mark.skipif(EXTENSION is None, reason="no extension in this installation")


def names(function: str) -> tuple[str, ...]:
    """The arguments of a C++ function, from the signature nanobind gives it."""
    signature = getattr(EXTENSION, function).__nb_signature__[0][0]
    return tuple(re.findall(r"(\w+): ", signature))


@pytest.mark.parametrize("function", linear.ARGUMENTS)
def test_arguments_passed_by_position_are_in_the_order_of_cpp(function: str) -> None:
    assert names(function) == linear.ARGUMENTS[function]


def test_every_argument_of_cpp_has_a_name() -> None:
    public = [name for name in dir(EXTENSION) if not name.startswith("_")]
    functions = [f for f in public if hasattr(getattr(EXTENSION, f), "__nb_signature__")]
    assert len(functions) > 15
    for function in functions:
        assert not any(re.fullmatch(r"arg\d*", name) for name in names(function)), function


def test_what_is_passed_by_position_is_what_the_names_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: dict[str, dict[str, Any]] = {}

    class Recorder:
        def linear(self, *arguments: Any) -> None:
            calls["linear"] = dict(zip(names("linear"), arguments, strict=True))

        def linear_backward(self, *arguments: Any) -> None:
            calls["backward"] = dict(zip(names("linear_backward"), arguments, strict=True))

    monkeypatch.setattr(linear, "kernels", Recorder)
    w4 = quantize(torch.randn(32, 64))
    x, dy, bias = torch.randn(3, 64), torch.randn(3, 32), torch.randn(32)
    A, B = torch.randn(2, 64), torch.randn(32, 2)
    y, thin = linear.multiply(x, w4, bias, "bfloat16x3", LowRank(A, B, 0.5))
    dx, _ = linear.multiply_backward(dy, w4, "float32", None)
    forward, backward = calls["linear"], calls["backward"]
    assert w4.nested_absmax is not None
    assert forward["codes"] == w4.codes.data_ptr()
    assert forward["nested"] == w4.nested_absmax.data_ptr()
    assert (forward["rows"], forward["cols"], forward["block"]) == (32, 64, 64)
    assert (forward["x"], forward["y"]) == (x.data_ptr(), y.data_ptr())
    assert (forward["type"], forward["lines"], forward["bias"]) == (0, 3, bias.data_ptr())
    assert (forward["a"], forward["b"], forward["rank"]) == (A.data_ptr(), B.data_ptr(), 2)
    assert (forward["scaling"], forward["thin"]) == (0.5, thin.data_ptr())
    assert (forward["compute"], forward["threads"]) == (2, torch.get_num_threads())
    assert (backward["dy"], backward["dx"], backward["lines"]) == (dy.data_ptr(), dx.data_ptr(), 3)
    assert (backward["rank"], backward["compute"], backward["dense_type"]) == (0, 0, -1)
    assert len(STORED) == len(FROZEN) - 1
    assert len(Frozen(w4).arguments) == len(FROZEN)
    assert len(Factors(None, x).arguments) == len(UPDATE)


def test_numbers_of_types_and_of_the_format_are_those_of_cpp() -> None:
    constants = EXTENSION.constants()
    for dtype, number in compiled.WEIGHT_TYPES.items():
        assert constants[f"type_{str(dtype).removeprefix('torch.')}"] == number
    for compute, number in compiled.COMPUTE.items():
        assert constants[f"compute_{compute}"] == number
    assert constants["nf4_group_size"] == GROUP_SIZE
    assert constants["nf4_zero_code"] == ZERO_CODE
    assert constants["nf4_smallest_absmax"] == pytest.approx(SMALLEST_ABSMAX, rel=1e-6)
    assert (constants["nf4_smallest_block"], constants["nf4_largest_block"]) == (
        min(BLOCK_SIZES),
        max(BLOCK_SIZES),
    )
    assert all(size & (size - 1) == 0 for size in BLOCK_SIZES)
    assert constants["too_flat"] > 1  # more than any probability: how Python tells it apart


def test_a_size_that_the_plan_reads_exists() -> None:
    """Each name given to `constant` is one that C++ has."""
    sources = "".join(inspect.getsource(module) for module in (linear, attention, cross_entropy))
    asked = set(re.findall(r'constant\("(\w+)"\)', sources))
    assert asked == {"packed_rows", "attention_queries", "cross_entropy_positions"}
    assert all(compiled.constant(name) > 0 for name in asked)
