"""The work of an operation, and the memory it needs while it runs.

The work of a product is its floating-point operations (2 m k n), by the type of its factors. The
work of any other operation is the bytes it reads and writes, because memory limits its speed. For
graftlm's own operators, the registration states both, and the workspace (`kernels/operator.py`).
"""

from __future__ import annotations

import collections
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from graftlm._compat.torch_attention import cpu_attention, cpu_attention_backward
from graftlm._compat.torch_operator import GROUPED_PRODUCT, UNSAFE_VIEW, packet_of, schema_name
from graftlm._compat.tracing import tree_leaves
from graftlm.kernels import Operator, operators

__all__ = ["Cost", "product_kind", "workspace_bytes"]

aten = torch.ops.aten


class Cost:
    """The work of a step, summed.

    Attributes:
        flops: floating-point operations of products, by `product_kind`.
        nbytes: bytes read and written by everything else.
        calls: operator calls that do work.
    """

    def __init__(self) -> None:
        self.flops: collections.Counter[str] = collections.Counter()
        self.nbytes = 0
        self.calls = 0

    def plus(self, other: Cost, factor: float = 1.0) -> Cost:
        """This cost plus ``factor`` times another."""
        cost = Cost()
        kinds = self.flops.keys() | other.flops.keys()
        cost.flops.update({k: int(self.flops[k] + factor * other.flops[k]) for k in kinds})
        cost.nbytes = int(self.nbytes + factor * other.nbytes)
        cost.calls = int(self.calls + factor * other.calls)
        return cost

    def add(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Count one call."""
        operator = _ours(func)
        if func.namespace == "profiler" or func.is_view or func in _FREE:
            return
        if operator is not None and operator.once:
            return
        self.calls += 1
        flops = _flops(func, args, kwargs, result)
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        if flops:
            factor = next(t for t in tensors if t.dtype.is_floating_point)
            self.flops[product_kind(func, factor.dtype)] += flops
        elif func in _WRITES_ONLY:
            self.nbytes += sum(t.nbytes for t in tree_leaves(result) if isinstance(t, Tensor))
        else:
            self.nbytes += sum(t.nbytes for t in tensors)


_FREE = frozenset(
    {
        aten.detach.default,
        aten.empty.memory_format,
        aten.empty_like.default,
        aten.new_empty.default,
        aten.empty_strided.default,
        UNSAFE_VIEW,
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


def _ours(func: Any) -> Operator | None:
    """The registration of the operator if it is one of graftlm's."""
    if func.namespace != "graftlm":
        return None
    return operators()[schema_name(func).partition("::")[2]]


def _flops(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    if func is cpu_attention:
        flops = sdpa_flop_count(*(tensor.shape for tensor in args[:3]))  # type: ignore[no-untyped-call]
        return int(flops) // (2 if _causal(args, kwargs, 4) else 1)
    if func is cpu_attention_backward:
        flops = sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))  # type: ignore[no-untyped-call]
        return int(flops) // (2 if _causal(args, kwargs, 7) else 1)
    if func is GROUPED_PRODUCT:
        return 2 * int(args[0].numel()) * int(result.shape[-1])
    formula = flop_registry.get(packet_of(func))
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=result))


def _causal(args: Any, kwargs: Any, place: int) -> bool:
    """Whether PyTorch's attention is causal, from the argument at this index."""
    return bool(args[place] if len(args) > place else kwargs.get("is_causal"))


def product_kind(func: Any, dtype: torch.dtype) -> str:
    """The key of a speed: operator family and type, such as ``"matmul float32"``."""
    operator = _ours(func)
    if operator is not None:
        family = operator.family
    else:
        family = "attention" if "attention" in schema_name(func) else "matmul"
    return f"{family} {str(dtype).removeprefix('torch.')}"


def workspace_bytes(func: Any, args: Any, kwargs: Any, device: torch.device) -> int:
    """Bytes of workspace on ``device``, without the operator's arguments and results."""
    operator = _ours(func)
    return 0 if operator is None else operator.workspace_bytes(device, *args, **kwargs)
