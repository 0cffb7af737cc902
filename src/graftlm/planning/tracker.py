"""Following a step operation by operation: who allocates what, and how much work it is.

A dispatch mode sees every operator call below autograd, forward and backward. Each storage that
appears in an output for the first time is an allocation; a weak reference tells when it is freed.
Hooks tell which module is at work. Nothing is computed: the tensors are fake.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakIdKeyDictionary

from graftlm.planning.cost import Work, workspace_bytes
from graftlm.planning.fake_values import Shadows
from graftlm.planning.timeline import Allocation, Timeline

__all__ = ["Tracker"]

_LOOKS_AT_A_VALUE = torch.ops.aten._local_scalar_dense.default
_SUM, _SUM_IN_PLACE = torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records allocations and work while it is active.

    Args:
        mode: the fake tensor mode, entered before this one.
        device: the device planned for; it need not exist in this machine.
    """

    def __init__(self, mode: FakeTensorMode, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shadows = Shadows(mode)
        self.timeline = Timeline()
        self.work = Work()
        self._device = device
        self._seen: Any = WeakIdKeyDictionary()
        self._phase = "setup"
        self._module = ""
        self._depth = 0

    # --- what the step is doing -----------------------------------------------------------------

    @property
    def phase(self) -> str:
        """The phase of the step, as `Allocation.phase` names it."""
        if self._phase in ("setup", "optimizer", "end"):
            return self._phase
        if torch._C._current_autograd_node() is not None:
            return "recompute" if self._depth else "backward"
        return self._phase

    def begin_step(self) -> None:
        """The setup is over; what follows is the step."""
        self._phase, self._module, self._depth = "loss", "", 0

    def watch(self, model: nn.Module, body: nn.Module) -> None:
        """Follow which module is at work; ``body`` is the model without its output head."""
        inside = {id(module) for module in body.modules()}
        for name, module in model.named_modules():
            module.register_forward_pre_hook(self._entering(name, id(module) in inside))
            module.register_forward_hook(self._leaving(name, id(module) in inside))

    def _entering(self, name: str, counts: bool) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            self._module = name
            if counts:
                self._depth += 1
                if torch._C._current_autograd_node() is None:
                    self._phase = "forward"

        return hook

    def _leaving(self, name: str, counts: bool) -> Any:
        parent = name.rpartition(".")[0]

        def entering_backward(gradient: Tensor) -> None:
            # A recomputation may be cut short, without leaving its modules.
            self._module, self._depth = name, 0

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._module = parent
            if counts:
                self._depth = max(0, self._depth - 1)
                if not self._depth and self._phase == "forward":
                    self._phase = "loss"
            for tensor in tree_flatten(output)[0]:
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(entering_backward)  # type: ignore[no-untyped-call]
                    break

        return hook

    def watch_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Follow when the optimiser is at work."""

        def before(*_: Any) -> None:
            if self._phase != "setup":
                self._phase, self._module = "optimizer", ""

        def after(*_: Any) -> None:
            if self._phase != "setup":
                self._phase = "end"

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)

    # --- what is allocated ----------------------------------------------------------------------

    def claim(self, tensor: Tensor | None, component: str) -> None:
        """Say what ``tensor``'s memory is for; it counts from now on if it was not seen yet."""
        if tensor is None:
            return
        self._notice(tensor)
        allocation = self._seen[tensor.untyped_storage()]
        if allocation.component is None:
            allocation.component = component

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

    # --- every operation ------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            # Asked by autograd's C++ only, which wants a device this build of torch has.
            return torch.device("cpu")
        if func is _LOOKS_AT_A_VALUE:
            return self.shadows.scalar(args[0])
        if func._schema.is_mutable and torch.Tag.nondeterministic_seeded in func.tags:
            return args[0]  # filled with random numbers: nothing to see
        if func is _SUM and _engine_may_write_to(args[0]):
            func = _SUM_IN_PLACE
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": self._device}
        result = self.shadows.dynamic(func, args, kwargs)
        if result is NotImplemented:
            args, kwargs = self.shadows.answer(func, args, kwargs) or (args, kwargs)
            result = func(*args, **kwargs)
            self.shadows.follow(func, args, kwargs, result)
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, Tensor):
                self._notice(tensor)
        extra = workspace_bytes(func, args, kwargs, self._device)
        if extra:
            temporary = Allocation(extra, self.phase, self._module, "temporary")
            self.timeline.born(temporary)
            self.timeline.died(temporary, self.phase)
        if self._phase != "setup":
            self.work.add(func, args, kwargs, result)
        return result


def _engine_may_write_to(gradient: Tensor) -> bool:
    """Whether autograd, adding two gradients of one tensor, would add in place.

    It does so where it holds the only reference to the first, unless that is a tensor subclass, as
    fake tensors are. The references counted here are its own, this call's, and Python's.
    """
    tensor: Any = gradient
    held = tensor._use_count(), torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)
    if held != (4, 2):
        return False
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_name in ("inner", "_fn"):  # torch's own wrappers
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None and frame.f_code.co_name == "_engine_run_backward"
