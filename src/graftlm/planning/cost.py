"""The work of an operation, and the memory it needs while it runs.

The work of a product is its floating-point operations (2 m k n), by the type of its factors. The
work of any other operation is the bytes it reads and writes, because memory limits its speed. Each
operation is a call besides, which takes a time of its own. For graftlm's own operators, the
registration states flops, bytes and the workspace (`kernels/operator.py`).
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

__all__ = ["BYTES", "CALLS", "Cost", "workspace_bytes"]

BYTES, CALLS = "bytes", "calls"


class Cost(collections.Counter[str]):
    """The work of a step by kind: `BYTES`, `CALLS`, and flops by family and type."""

    def plus(self, other: Cost, factor: float = 1.0) -> Cost:
        """This cost plus ``factor`` times another."""
        kinds = self.keys() | other.keys()
        return Cost({kind: int(self[kind] + factor * other[kind]) for kind in kinds})

    def add(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Count one call."""
        operator, name = _ours(func), schema_name(func).rpartition("::")[2]
        if func.namespace == "profiler" or func.is_view or name in _FREE or func is UNSAFE_VIEW:
            return
        if operator is not None and operator.once:
            return
        self[CALLS] += 1
        if flops := _flops(func, args, kwargs, result):
            tensors = _tensors((args, kwargs, result))
            factor = next(t for t in tensors if t.dtype.is_floating_point)
            self[f"{_family(func)} {str(factor.dtype).removeprefix('torch.')}"] += flops
        else:
            moved = result if name in _WRITES_ONLY else (args, kwargs, result)
            self[BYTES] += sum(t.nbytes for t in _tensors(moved))


_FREE = ("detach", "empty", "empty_like", "new_empty", "empty_strided")
_WRITES_ONLY = ("embedding", "zeros", "zeros_like", "new_zeros", "full", "zero_", "fill_")


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _ours(func: Any) -> Operator | None:
    """The registration of the operator if it is one of graftlm's."""
    if func.namespace != "graftlm":
        return None
    return operators()[schema_name(func).partition("::")[2]]


def _flops(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    for attention, of_shapes, tensors, causal in (
        (cpu_attention, sdpa_flop_count, 3, 4),
        (cpu_attention_backward, sdpa_backward_flop_count, 4, 7),
    ):
        if func is attention:
            flops = int(of_shapes(*(tensor.shape for tensor in args[:tensors])))
            halved = args[causal] if len(args) > causal else kwargs.get("is_causal")
            return flops // 2 if halved else flops
    if func is GROUPED_PRODUCT:
        return 2 * int(args[0].numel()) * int(result.shape[-1])
    formula = flop_registry.get(packet_of(func))
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=result))


def _family(func: Any) -> str:
    """Products of one family have one speed for each type."""
    if (operator := _ours(func)) is not None:
        return operator.family
    return "attention" if "attention" in schema_name(func) else "matmul"


def workspace_bytes(func: Any, args: Any, kwargs: Any, device: torch.device) -> int:
    """Bytes of workspace on ``device``, without the operator's arguments and results."""
    operator = _ours(func)
    return 0 if operator is None else operator.workspace_bytes(device, *args, **kwargs)
