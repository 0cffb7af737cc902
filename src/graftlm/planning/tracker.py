"""Follows a step operator by operator and records allocations and work.

A dispatch mode sees every operator call below autograd, forward and backward. Each storage that
appears in an output for the first time is an allocation; a weak reference reports when it is freed.
Hooks report the current module. The large tensors are fake, so nothing large is computed.

autograd adds two gradients of one tensor in place, but not under a dispatch mode. Such sums are put
in place here: outside a recomputed forward pass, a backward pass makes hardly any other.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from graftlm._compat.torch_operator import READS_A_VALUE, is_mutable
from graftlm._compat.tracing import TorchDispatchMode, in_backward_pass, tree_leaves
from graftlm.planning.cost import CALLS, Cost, workspace_bytes
from graftlm.planning.timeline import Allocation, Timeline
from graftlm.planning.values import StepValues

__all__ = ["TooManyCallsError", "Tracker"]


class TooManyCallsError(Exception):
    """The step calls more operators than were allowed."""


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records allocations and work while it is active. Enter the fake tensor mode before it.

    Args:
        device: the planned device; this machine need not have it.
        entered: is called with the name of each module when its work begins.

    Attributes:
        most_calls: raise `TooManyCallsError` when the step has called more operators.
    """

    def __init__(
        self, device: torch.device, entered: Callable[[str], None] = lambda module: None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.timeline = Timeline()
        self.cost = Cost()
        self._values = StepValues(device)
        self._device, self._entered, self.most_calls = device, entered, math.inf
        self._seen: Any = WeakIdKeyDictionary()
        self._part, self._module = "setup", ""

    @property
    def phase(self) -> str:
        """The phase of the step, as `Allocation.phase` names it."""
        return "backward" if self._part == "loss" and in_backward_pass() else self._part

    def watch(self, model: nn.Module, body: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Begin the step; follow the module at work. ``body``: the model without its head."""
        self._part = "loss"
        for name, module in model.named_modules():
            inside = "forward" if module is body else None
            after = "loss" if module is body else None
            module.register_forward_pre_hook(functools.partial(self._enter, name, inside))
            module.register_forward_hook(functools.partial(self._leave, name, after))
        optimizer.register_step_pre_hook(lambda *_: self._enter("", "optimizer"))
        optimizer.register_step_post_hook(lambda *_: self._enter("", "loss"))

    def _enter(self, module: str, part: str | None, *_: Any) -> None:
        self._part, self._module = part or self._part, module
        self._entered(module)

    def _leave(self, name: str, part: str | None, module: Any, inputs: Any, output: Any) -> None:
        self._enter(name.rpartition(".")[0], part)
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                # Its gradient arrives when the backward pass reaches the module.
                tensor.register_hook(functools.partial(self._enter, name, None))  # type: ignore[no-untyped-call]
                break

    def claim(self, component: str, *tensors: Tensor) -> None:
        """Assign the memory of ``tensors`` to a component, unless they have one."""
        for tensor in tensors:
            self._notice(tensor)
            allocation = self._seen[tensor.untyped_storage()]
            allocation.component = allocation.component or component

    def _notice(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        allocation = Allocation(storage.nbytes(), self.phase, self._module)
        self._seen[storage] = allocation
        self.timeline.born(allocation)
        weakref.finalize(storage, self._freed, allocation).atexit = False

    def _freed(self, allocation: Allocation) -> None:
        self.timeline.died(allocation, self.phase)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            # Only autograd's C++ calls this. It needs a device that this build of torch has.
            return torch.device("cpu")
        if func is READS_A_VALUE:
            return self._values.scalar(args[0])
        if is_mutable(func) and torch.Tag.nondeterministic_seeded in func.tags:
            return args[0]  # filled with random numbers: no allocation
        if func is torch.ops.aten.add.Tensor and _adds_gradients(*args):
            func = torch.ops.aten.add_.Tensor
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": self._device}
        result = self._values.call(func, args, kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._notice(tensor)
        extra = workspace_bytes(func, args, kwargs, self._device)
        if extra:
            temporary = Allocation(extra, self.phase, self._module, "temporary")
            self.timeline.born(temporary)
            self.timeline.died(temporary, self.phase)
        if self._part != "setup":
            self.cost.add(func, args, kwargs, result)
            if self.cost[CALLS] > self.most_calls:
                raise TooManyCallsError
        return result


def _adds_gradients(first: Any, second: Any) -> bool:
    """Whether two tensors of one kind are added in a backward pass, but not in a recomputation."""
    return (
        in_backward_pass()
        and not torch.is_grad_enabled()
        and isinstance(first, Tensor)
        and isinstance(second, Tensor)
        and (first.shape, first.dtype) == (second.shape, second.dtype)
    )
