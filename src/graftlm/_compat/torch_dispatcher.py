"""What torch's dispatcher does with a call, and which kernels it knows.

Seen in torch 2.6 to 2.13: `torch.library._impls`, `torch._C._dispatch_*`, `torch._C._functorch`,
`torch._C._get_tracing_state`, `torch.autograd.profiler._is_profiler_enabled`,
`torch.utils._python_dispatch.is_in_torch_dispatch_mode`, `torch.utils.flop_counter`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils.flop_counter import register_flop_formula

__all__ = ["DispatcherKernel", "count_flops_by", "is_observed"]

_library, _ops, _modules = torch.library, torch.ops, sys.modules


def is_observed(tensor: Tensor) -> bool:
    """Whether something besides the caller must see a call: a mode, transform, trace or profiler.

    Such a call has to go through the dispatcher, and so has one on a tensor without data or of a
    subclass.
    """
    return (
        torch.compiler.is_compiling()
        or type(tensor) not in (Tensor, nn.Parameter)
        or tensor.is_meta
        or is_in_torch_dispatch_mode()
        or torch.autograd.profiler._is_profiler_enabled
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.maybe_current_level() is not None
    )


class DispatcherKernel:
    """Whether the dispatcher has a kernel of an operator for one device type.

    Asking the dispatcher takes as long as a small kernel, so the answer is kept until something may
    have changed it. Kernels that Python registers are in a set of torch's own, which is read each
    time. Kernels that C++ registers come with a library, which is a new module or a new entry of
    `torch.ops.loaded_libraries`.

    Args:
        operator: the qualified name, such as ``graftlm::rms_norm``.
        device_type: such as ``cpu``.
    """

    __slots__ = (
        "_found",
        "_keys",
        "_libraries",
        "_modules",
        "_operator",
        "_python",
        "_registered",
    )

    def __init__(self, operator: str, device_type: str) -> None:
        key = torch._C._dispatch_key_for_device(device_type)
        self._operator = operator
        self._keys = (key, f"Autograd{key}")
        self._python = frozenset(operator.replace("::", "/") + "/" + key for key in self._keys)
        self._registered = self._modules = self._libraries = -1
        self._found = False

    def exists(self) -> bool:
        """Whether such a kernel is registered now."""
        registered = _library._impls
        if not self._python.isdisjoint(registered):
            return True
        if (
            len(_modules) != self._modules
            or len(registered) != self._registered
            or len(_ops.loaded_libraries) != self._libraries
        ):
            self._modules, self._registered = len(_modules), len(registered)
            self._libraries = len(_ops.loaded_libraries)
            has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
            self._found = any(has_kernel(self._operator, key) for key in self._keys)
        return self._found


def count_flops_by(packet: Any, formula: Callable[..., int]) -> None:
    """Let `torch.utils.flop_counter` count an operator by ``formula(*arguments)``."""

    def counted(*arguments: Any, out_val: Any = None, **_: Any) -> int:
        return formula(*arguments)

    register_flop_formula(packet, get_raw=True)(counted)
