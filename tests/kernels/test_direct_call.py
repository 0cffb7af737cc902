"""A call goes past PyTorch's dispatcher only where nobody could tell."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from graftlm._compat.torch_dispatcher import is_observed
from graftlm.kernels import nf4, ops
from graftlm.kernels.attention import attention
from graftlm.kernels.gated_unit import SILU, gated_unit
from graftlm.kernels.mask_blocks import Block
from graftlm.kernels.rms_norm import rms_norm

W4 = nf4.quantize(torch.randn(48, 64, generator=torch.Generator().manual_seed(0)))
CALLS: dict[str, Callable[[Tensor], Any]] = {
    "linear": lambda x: ops.linear(x, W4),
    "lora_linear": lambda x: ops.lora_linear(
        x, W4, None, torch.ones(2, 64), torch.ones(48, 2), 0.5
    ),
    "rms_norm": lambda x: rms_norm(x, torch.ones(64), 1.0, 1e-6),
    "gated_unit": lambda x: gated_unit(x, x, SILU),
    "attention": lambda x: attention(*3 * [x[None, None]], None, None, [Block(0, 5, True)]),
}


@pytest.mark.parametrize("name", CALLS)
def test_all_ways_give_the_same(name: str) -> None:
    x = torch.randn(5, 64, requires_grad=True)
    recorded = CALLS[name](x)
    (slope,) = torch.autograd.grad(recorded.square().sum(), x)
    with torch.profiler.profile():  # through the dispatcher
        watched = CALLS[name](x)
        assert torch.equal(watched, recorded)
        assert torch.equal(torch.autograd.grad(watched.square().sum(), x)[0], slope)
    with torch.no_grad():
        assert torch.equal(CALLS[name](x), recorded)
    with torch.inference_mode():
        assert torch.equal(CALLS[name](x), recorded)


@pytest.mark.parametrize("name", CALLS)
def test_a_recorded_call_inspects_no_signature(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def inspected(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a signature was looked up")

    x = torch.randn(5, 64, requires_grad=True)
    monkeypatch.setattr(inspect, "signature", inspected)
    assert CALLS[name](x).requires_grad


def test_a_gradient_has_none_of_its_own() -> None:
    x = torch.randn(5, 64, requires_grad=True)
    y = CALLS["rms_norm"](x).square().sum()
    (slope,) = torch.autograd.grad(y, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@torch.no_grad()
def test_who_looks_on_sees_the_operator() -> None:
    x = torch.randn(5, 64)
    assert not is_observed(x)
    with FlopCounterMode(display=False) as counter:
        CALLS["linear"](x)
    assert counter.get_total_flops() == 2 * 5 * 48 * 64
    with torch.profiler.profile() as profile:
        CALLS["linear"](x)
    assert "graftlm::nf4_linear" in {event.key for event in profile.key_averages()}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert is_observed(mode.from_tensor(x))
    assert is_observed(x.to("meta"))
    seen = []
    torch.vmap(lambda row: seen.append(is_observed(row)) or row)(x)
    assert seen == [True]
    torch.jit.trace(lambda t: seen.append(is_observed(t)) or t, x, check_trace=False)
    assert seen == [True] * len(seen)


@torch.no_grad()
def test_a_compiled_function_holds_the_operator() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(str(graph.graph))
        return graph.forward

    x = torch.randn(5, 64)
    compiled = torch.compile(CALLS["linear"], backend=backend, fullgraph=True)
    assert torch.equal(compiled(x), CALLS["linear"](x))
    assert "nf4_linear" in graphs[0]
