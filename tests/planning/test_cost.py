"""The work of attention, PyTorch's and ours, is counted alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from graftlm.kernels.attention import attention
from graftlm.kernels.mask_blocks import Block
from graftlm.planning.cost import BYTES, CALLS, Cost, workspace_bytes

LENGTH, SIZE, HEADS = 64, 16, 2


class Counted(TorchDispatchMode):
    """Adds every call to `cost`, and keeps what operators of attention hold while they run."""

    def __init__(self) -> None:
        super().__init__()
        self.cost = Cost()
        self.held: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.cost.add(func, args, kwargs or {}, result)
        if "attention" in func._schema.name:
            self.held.append(workspace_bytes(func, args, kwargs or {}, torch.device("cpu")))
        return result


def counted(attend: Any) -> Counted:
    q, k, v = (torch.randn(1, HEADS, LENGTH, SIZE, requires_grad=True) for _ in range(3))
    with Counted() as counter:
        y: Tensor = attend(q, k, v)
        torch.autograd.grad(y.sum(), (q, k, v))
    return counter


def flops(attend: Any) -> int:
    cost = counted(attend).cost
    assert {kind for kind in cost if kind not in (BYTES, CALLS)} == {"attention float32"}
    return cost["attention float32"]


def test_a_causal_one_is_half_of_one_to_all() -> None:
    def theirs(causal: bool) -> int:
        return flops(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal))

    def ours(causal: bool) -> int:
        return flops(lambda q, k, v: attention(q, k, v, None, None, (Block(0, LENGTH, causal),)))

    assert ours(False) == theirs(False) == 2 * theirs(True)
    pairs = LENGTH * (LENGTH + 1) // 2
    assert ours(True) == 2 * (2 + 5) * HEADS * SIZE * pairs


def test_ours_holds_the_longest_block_and_the_gradients_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # no more than there are tasks

    def held(blocks: int) -> list[int]:
        size = LENGTH // blocks
        parts = [Block(i * size, (i + 1) * size, True) for i in range(blocks)]
        return counted(lambda q, k, v: attention(q, k, v, None, None, parts)).held

    gradients = 2 * 4 * HEADS * LENGTH * SIZE
    for one, four, whole in zip(held(1), held(4), (0, gradients), strict=True):
        assert one - whole == 4 * (four - whole) > 0
