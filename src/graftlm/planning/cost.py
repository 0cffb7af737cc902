"""How much work an operation is, and which memory it takes inside.

Products are counted in floating-point operations by the type of their factors (2 m k n each);
everything else in bytes read and written, which is what bounds it. Memory that an operator takes
and returns before it ends is invisible from outside, and declared here.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

import graftlm.kernels.attention
import graftlm.kernels.cross_entropy
import graftlm.kernels.ops  # noqa: F401 - defines the operators

__all__ = ["Work", "product_kind", "workspace_bytes"]

aten = torch.ops.aten

_CPU_ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu.default
_CPU_ATTENTION_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class Work:
    """The work of a step, summed.

    Attributes:
        flops: floating-point operations of products, by `product_kind`.
        nbytes: bytes read and written by everything else.
        calls: operator calls that do something.
    """

    def __init__(self) -> None:
        self.flops: collections.Counter[str] = collections.Counter()
        self.nbytes = 0
        self.calls = 0

    def plus(self, other: Work, factor: float = 1.0) -> Work:
        """This work and ``factor`` times another's."""
        work = Work()
        kinds = self.flops.keys() | other.flops.keys()
        work.flops.update({k: int(self.flops[k] + factor * other.flops[k]) for k in kinds})
        work.nbytes = int(self.nbytes + factor * other.nbytes)
        work.calls = int(self.calls + factor * other.calls)
        return work

    def add(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Count one call."""
        if func.namespace == "profiler" or func.is_view or func in _FREE:
            return
        self.calls += 1
        flops = _flops(func, args, kwargs, result)
        tensors = [t for t in tree_flatten((args, kwargs, result))[0] if isinstance(t, Tensor)]
        if flops:
            factor = next(t for t in tensors if t.dtype.is_floating_point)
            self.flops[product_kind(func, factor.dtype)] += flops
        elif func in _WRITES_ONLY:
            self.nbytes += sum(t.nbytes for t in tree_flatten(result)[0] if isinstance(t, Tensor))
        else:
            self.nbytes += sum(t.nbytes for t in tensors)


_FREE = frozenset(
    {
        aten.detach.default,
        aten.empty.memory_format,
        aten.empty_like.default,
        aten.new_empty.default,
        aten.empty_strided.default,
        aten._unsafe_view.default,
        torch.ops.graftlm.mean_row.default,  # once a run
    }
)
_WRITES_ONLY = frozenset(
    {
        aten.embedding.default,
        aten.zeros.default,
        aten.zeros_like.default,
        aten.new_zeros.default,
        aten.full.default,
        aten.zero_.default,
        aten.fill_.Scalar,
    }
)


def _flops(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    if func is _CPU_ATTENTION:
        flops = sdpa_flop_count(*(tensor.shape for tensor in args[:3]))  # type: ignore[no-untyped-call]
        return int(flops) // (2 if _causal(args, kwargs, 4) else 1)
    if func is _CPU_ATTENTION_BACKWARD:
        flops = sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))  # type: ignore[no-untyped-call]
        return int(flops) // (2 if _causal(args, kwargs, 7) else 1)
    formula = flop_registry.get(func._overloadpacket)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=result))


def _causal(args: Any, kwargs: Any, place: int) -> bool:
    """Whether PyTorch's attention is told so, in the argument at this place."""
    return bool(args[place] if len(args) > place else kwargs.get("is_causal"))


def product_kind(func: Any, dtype: torch.dtype) -> str:
    """What runs at one speed: the operator family and the type, as ``"matmul float32"``."""
    name = func._schema.name.partition("::")[2]
    family = "matmul"
    if "attention" in name:
        family = "attention"
    elif func.namespace == "graftlm":
        family = name.removesuffix("_backward")
        if family in ("nf4_lora_linear", "lora_linear", "factor_gradient"):  # by one tile product
            family = "nf4_linear"
    return f"{family} {str(dtype).removeprefix('torch.')}"


def workspace_bytes(func: Any, args: Any, kwargs: Any, device: torch.device) -> int:
    """Bytes the operator holds while it runs, besides its arguments and results."""
    formula = _WORKSPACES.get(func) if device.type == "cpu" else None
    return formula(args, kwargs) if formula else 0


def _loss_workspace(args: Any, kwargs: Any) -> int:
    """What the native walk collects: the softmax entries it keeps, 4 bytes each for row and logit.

    A trained model keeps about 1 % of them at the default tolerance, one that reads such text for
    the first time 5 to 10 %, an untrained one all. 512 positions are walked together
    (csrc/cross_entropy.cpp).
    """
    hidden, weight = args[:2]
    positions = min(hidden.shape[0], 512)
    kept = 0.08 * positions * weight.shape[0]
    return int(8 * kept + 8 * positions * weight.shape[1])


def _packed_input(args: Any, kwargs: Any) -> int:
    """The packed input: up to 512 rows at a time (csrc/linear.cpp)."""
    return _packed_rows(args[0]) * int(args[0].shape[-1]) * 4


def _packed_input_and_update(args: Any, kwargs: Any) -> int:
    """The same, and the thin product; the last arguments are A, B, scaling and compute."""
    rank = int(args[-3].shape[1])
    return _packed_input(args, kwargs) + _packed_rows(args[0]) * rank * 4


def _upright_factor(args: Any, kwargs: Any) -> int:
    """The thin factor widened, turned and packed, all of it (csrc/factor_gradient.cpp)."""
    return 3 * 4 * int(args[0].numel())


def _packed_rows(x: Tensor) -> int:
    return min(x.numel() // max(x.shape[-1], 1), 512)


def _attention_workspace(args: Any, kwargs: Any) -> int:
    """Keys and values, packed, and scores of 48 queries at a time (csrc/attention.cpp)."""
    q, blocks = args[0], args[-1]
    tasks = q.shape[0] * q.shape[1] * sum(-(-length // 48) for length in _lengths(blocks))
    return _for_each_thread(tasks, blocks, 2 * q.shape[3] + 48)


def _attention_backward_workspace(args: Any, kwargs: Any) -> int:
    """Keys twice and values once, packed; and the gradients of both, for each head of q."""
    _, q, k = args[:3]
    blocks = args[-1]
    heads = q.shape[0] * q.shape[1]
    gradients = 2 * 4 * heads * k.shape[2] * q.shape[3]
    return _for_each_thread(heads * len(blocks) // 3, blocks, 3 * q.shape[3]) + int(gradients)


def _for_each_thread(tasks: int, blocks: list[int], numbers: int) -> int:
    """Float32 numbers for each position of the longest block, for each thread with a task."""
    return 4 * numbers * max(_lengths(blocks), default=0) * min(torch.get_num_threads(), tasks)


def _lengths(blocks: list[int]) -> list[int]:
    return [stop - start for start, stop in zip(blocks[::3], blocks[1::3], strict=True)]


_WORKSPACES: dict[Any, Callable[[Any, Any], int]] = {
    torch.ops.graftlm.cross_entropy.default: _loss_workspace,
    torch.ops.graftlm.attention.default: _attention_workspace,
    torch.ops.graftlm.attention_backward.default: _attention_backward_workspace,
    torch.ops.graftlm.factor_gradient.default: _upright_factor,
    torch.ops.graftlm.nf4_linear.default: _packed_input,
    torch.ops.graftlm.nf4_linear_backward.default: _packed_input,
    torch.ops.graftlm.nf4_lora_linear.default: _packed_input_and_update,
    torch.ops.graftlm.nf4_lora_linear_backward.default: _packed_input_and_update,
    torch.ops.graftlm.lora_linear.default: _packed_input_and_update,
    torch.ops.graftlm.lora_linear_backward.default: _packed_input_and_update,
}
