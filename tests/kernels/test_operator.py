"""What every registered operator has, and who runs a call on a device."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

from graftlm import kernels
from graftlm.errors import GraftLMError, RequestError
from graftlm.kernels import Operator, implement, operators, withdraw
from graftlm.kernels.operator import Case
from graftlm.kernels.rms_norm import rms_norm

OPERATORS = operators()
each_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())


def each_case() -> Any:
    cases = [(o, case) for o in OPERATORS.values() for case in o.cases()]
    ids = [f"{o.name}-{case.label}" for o, case in cases]
    return pytest.mark.parametrize(("operator", "case"), cases, ids=ids)


def tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def layout(t: Tensor) -> tuple[Any, ...]:
    return tuple(t.shape), t.dtype, t.stride() if t.numel() else (), t.device.type


@each_operator
def test_every_part_takes_the_arguments_of_the_schema(operator: Operator) -> None:
    schema = operator.dispatched._schema
    case = operator.cases()[0]
    assert len(case.arguments) == len(schema.arguments)
    assert str(schema.arguments[0].type) == "Tensor"
    assert all(result.name for result in schema.returns) or len(schema.returns) == 1
    parts = [operator.check, operator.reference, operator.fake, operator.flops, operator.workspace]
    for part in parts:
        inspect.signature(part).bind(*case.arguments)
    assert len(tensors(operator.reference(*case.arguments))) == len(schema.returns)
    assert operator.nbytes(case.arguments, ()) == sum(t.nbytes for t in tensors(case.arguments))
    assert operator.workspace_bytes("cpu", *case.arguments) >= 0
    assert operator.flops(*case.arguments) >= 0


@each_operator
def test_arguments_are_checked_whoever_runs_the_call(operator: Operator) -> None:
    """An argument that the check refuses reaches no kernel, from outside or from here."""
    called: list[Any] = []
    added = implement(operator.name, "cpu", lambda *a: called.append(a))
    try:
        first, *rest = operator.cases()[0].arguments
        with pytest.raises(GraftLMError):
            operator.run(first[..., None].expand(*first.shape, 3).contiguous()[..., :0], *rest)
    finally:
        withdraw(added)
    assert not called


@each_operator
def test_who_is_not_differentiable_has_nothing_to_keep(operator: Operator) -> None:
    backward = f"{operator.name}_backward"
    assert (operator.gradient is None) == (operator.keep is None)
    assert operator.gradient is not None or backward not in OPERATORS


def test_each_family_that_multiplies_is_timed_once() -> None:
    multiplying = {o.family for o in OPERATORS.values() if o.flops(*o.cases()[0].arguments)}
    timed = [o.family for o in OPERATORS.values() if o.timing is not None]
    assert sorted(timed) == sorted(multiplying)
    for operator in OPERATORS.values():
        if operator.timing is not None:
            timing = operator.timing(torch.bfloat16)
            assert timing.flops > 0
            timing.call()


@each_case()
def test_fake_results_have_the_layout_of_real_ones(operator: Operator, case: Case) -> None:
    with torch.no_grad():
        real = tensors(operator.run(*case.arguments))
        plain = tensors(operator.reference(*case.arguments))
        with FakeTensorMode() as mode:
            arguments = tree_map_only(Tensor, mode.from_tensor, case.arguments)
            fake = tensors(operator.dispatched(*arguments))
    assert [layout(t) for t in fake] == [layout(t) for t in real]
    assert [(t.shape, t.dtype) for t in plain] == [(t.shape, t.dtype) for t in real]


@each_case()
def test_the_schema_holds(operator: Operator, case: Case) -> None:
    """Nothing is written to, and no result shares memory with an argument."""
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(operator.dispatched, case.arguments, test_utils=tests)


def differentiable() -> list[tuple[Operator, Case]]:
    return [
        (o, next(c for c in o.cases() if all(t.dtype != torch.bfloat16 for t in tensors([*c[1]]))))
        for o in OPERATORS.values()
        if o.gradient is not None
    ]


@pytest.mark.parametrize(
    ("operator", "case"), differentiable(), ids=[o.name for o, _ in differentiable()]
)
def test_the_gradient_is_that_of_the_reference(operator: Operator, case: Case) -> None:
    """For every argument that gets one, against autograd's own pass through the reference."""

    def gradients(run: Callable[..., Any]) -> list[Tensor | None]:
        arguments = [
            t.detach().clone().requires_grad_() if wanted(t) else t for t in case.arguments
        ]
        y = tree_leaves(run(*arguments))[0]
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(7))
        inputs = [t for t in arguments if wanted(t)]
        return list(torch.autograd.grad(y, inputs, dy, allow_unused=True))

    def wanted(t: Any) -> bool:
        return isinstance(t, Tensor) and t.is_floating_point()

    ours, theirs = gradients(operator), gradients(operator.reference)
    assert sum(gradient is not None for gradient in ours) >= 1
    for a, b in zip(ours, theirs, strict=True):
        if a is not None:  # a frozen weight gets none, though the reference could
            assert b is not None
            assert (a - b).norm() <= 1e-4 * b.norm()


def test_doctor_checks_every_operator_and_finds_nothing_wrong() -> None:
    rows = kernels.selfcheck()
    assert {row["operator"] for row in rows if row["device"] == "cpu"} == set(OPERATORS)
    assert [row for row in rows if row["result"] != "ok"] == []


# ---------------------------------------------------------------- kernels from outside

X, WEIGHT = torch.randn(5, 64), torch.ones(64)


def mine(calls: list[str], wrong: float = 0.0) -> Callable[..., Any]:
    def norm(x: Tensor, weight: Tensor, shift: float, eps: float) -> tuple[Tensor, Tensor]:
        calls.append("forward")
        y, rstd = OPERATORS["rms_norm"].reference(x, weight, shift, eps)
        return y + wrong, rstd

    return norm


def mine_backward(calls: list[str]) -> Callable[..., Any]:
    def backward(dy: Tensor, *rest: Any) -> Tensor:
        calls.append("backward")
        return OPERATORS["rms_norm_backward"].reference(dy, *rest)

    return backward


@pytest.fixture(params=["implement", "torch.library.impl", "torch.library.register_kernel"])
def register(request: pytest.FixtureRequest) -> Iterator[Callable[[str, Callable[..., Any]], None]]:
    """``register(name, function)`` adds a kernel for the CPU in one of three ways."""
    added = []
    with torch.library._scoped_library("graftlm", "FRAGMENT") as library:

        def add(name: str, function: Callable[..., Any]) -> None:
            if request.param == "implement":
                added.append(implement(name, "cpu", function))
            elif request.param == "torch.library.impl":
                torch.library.impl(f"graftlm::{name}", "CPU", function, lib=library)
            else:
                torch.library.register_kernel(f"graftlm::{name}", "cpu", function, lib=library)

        yield add
        for implementation in added:
            withdraw(implementation)


def test_a_kernel_from_outside_is_the_one_that_runs(
    register: Callable[[str, Callable[..., Any]], None],
) -> None:
    calls: list[str] = []
    with torch.no_grad():
        expected = rms_norm(X, WEIGHT, 0.0, 1e-6)
        register("rms_norm", mine(calls))
        register("rms_norm_backward", mine_backward(calls))
        torch.testing.assert_close(rms_norm(X, WEIGHT, 0.0, 1e-6), expected)
    assert calls == ["forward"]
    with torch.inference_mode():
        rms_norm(X, WEIGHT, 0.0, 1e-6)
    assert calls == ["forward"] * 2
    x = X.clone().requires_grad_()
    y = rms_norm(x, WEIGHT, 0.0, 1e-6)
    assert calls == ["forward"] * 3
    y.sum().backward()
    assert calls == ["forward"] * 3 + ["backward"]
    torch.ops.graftlm.rms_norm(X, WEIGHT, 0.0, 1e-6)
    assert calls[-1] == "forward"
    assert x.grad is not None


def test_a_kernel_that_was_taken_back_runs_no_more() -> None:
    calls: list[str] = []
    for _ in range(2):
        with torch.library._scoped_library("graftlm", "FRAGMENT") as library:
            torch.library.impl("graftlm::rms_norm", "CPU", mine(calls), lib=library)
            with torch.no_grad():
                rms_norm(X, WEIGHT, 0.0, 1e-6)
        count = len(calls)
        assert count > 0
        with torch.no_grad():
            rms_norm(X, WEIGHT, 0.0, 1e-6)
        assert len(calls) == count
    added = implement("rms_norm", "cpu", mine(calls))
    withdraw(added)
    with torch.no_grad():
        rms_norm(X, WEIGHT, 0.0, 1e-6)
    assert len(calls) == count


def test_a_kernel_gets_only_the_arguments_it_accepts() -> None:
    calls: list[str] = []
    added = implement("rms_norm", "cpu", mine(calls), accepts=lambda x, *_: len(x) > 5)
    try:
        with torch.no_grad():
            rms_norm(X, WEIGHT, 0.0, 1e-6)
            assert calls == []
            rms_norm(torch.randn(6, 64), WEIGHT, 0.0, 1e-6)
        assert calls == ["forward"]
    finally:
        withdraw(added)


@pytest.mark.parametrize("wrong", [0.0, 0.1])
def test_doctor_checks_a_kernel_from_outside(
    register: Callable[[str, Callable[..., Any]], None],
    wrong: float,
    request: pytest.FixtureRequest,
) -> None:
    calls: list[str] = []
    register("rms_norm", mine(calls, wrong))
    rows = [row for row in kernels.selfcheck() if row["operator"] == "rms_norm"]
    assert len(calls) >= len(rows) > 0
    assert {row["result"] for row in rows} == {"WRONG" if wrong else "ok"}
    way = request.node.callspec.params["register"]
    names = {row["runs"] for row in rows}
    assert names == {f"{__name__}.mine.<locals>.norm" if way == "implement" else "torch.library"}


def test_planning_counts_the_workspace_of_a_kernel_from_outside() -> None:
    operator = OPERATORS["rms_norm"]
    arguments = operator.cases()[0].arguments
    added = implement("rms_norm", "cpu", operator.reference, workspace=lambda *_: 12345)
    try:
        assert operator.workspace_bytes("cpu", *arguments) == 12345
        assert operator.workspace_bytes("cuda", *arguments) == 0  # no kernel for it is known here
    finally:
        withdraw(added)


def test_nothing_is_registered_for_tensors_without_data() -> None:
    """There the dispatcher has the operator's own fake, which is no kernel."""
    operator = OPERATORS["rms_norm"]
    assert not operator.has_kernel(X.to("meta"), WEIGHT.to("meta"), 0.0, 1e-6)


def test_unknown_operators_and_devices_are_refused_by_name() -> None:
    with pytest.raises(RequestError, match="rms_norn"):
        implement("rms_norn", "cpu", mine([]))
    with pytest.raises(RequestError, match="gpu"):
        implement("rms_norm", "gpu", mine([]))
