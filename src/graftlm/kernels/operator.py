"""An operator: one registration with all information about one computation.

To add an operator, make an `Operator`; it registers itself here and with `torch.library`. To add a
kernel for a device, call `implement`. Planning reads the cost, `graftlm doctor` runs the cases.

The first of these that exists runs a call on a device:

1. a kernel that other code registered with `torch.library` for the device;
2. the newest implementation (`implement`) that accepts the arguments;
3. the reference.

A call through torch's dispatcher to an operator written in Python costs about 50 µs, and as much
again in the backward pass; a step of a small model makes hundreds of calls, and with few tokens a
kernel takes less time than that. So a call goes straight to the implementation if nothing observes
it and the dispatcher has no kernel of somebody else's: as a plain call, or, where gradients are
recorded, as an autograd function made of the same parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from graftlm._compat.torch_dispatcher import DispatcherKernel, count_flops_by, is_observed
from graftlm._compat.tracing import tree_leaves
from graftlm.errors import RequestError

__all__ = ["Case", "Implementation", "Operator", "Timing", "implement", "operators", "withdraw"]

_LIBRARY = torch.library.Library("graftlm", "DEF")  # type: ignore[no-untyped-call]
_OPERATORS: dict[str, Operator] = {}


def _always(*arguments: Any) -> bool:
    return True


def _none(*arguments: Any) -> int:
    return 0


class Case(NamedTuple):
    """Arguments for a check of an operator.

    Attributes:
        label: the special property of this case.
        arguments: all arguments of the schema, on the CPU.
        bound: the relative error allowed against the reference; 0: every bit must agree.
        outputs: which of several results to compare; ``None``: all.
    """

    label: str
    arguments: tuple[Any, ...]
    bound: float
    outputs: tuple[int, ...] | None = None


class Timing(NamedTuple):
    """A call that measures this machine's speed, and its number of floating-point operations."""

    call: Callable[[], Any]
    flops: int


@dataclasses.dataclass(frozen=True, eq=False)
class Implementation:
    """A kernel for one device.

    Attributes:
        operator: the operator's name.
        device: a device type, such as ``cpu`` or ``cuda``.
        function: takes and returns what the schema says; the arguments have passed the checks.
        accepts: whether it takes these arguments.
        workspace: bytes it holds while it runs, besides arguments and results.
        label: its name in `graftlm doctor`.
    """

    operator: str
    device: str
    function: Callable[..., Any]
    accepts: Callable[..., bool]
    workspace: Callable[..., int]
    label: str


@dataclasses.dataclass(eq=False, kw_only=True)
class Operator:
    """``graftlm::<name>``. Every function takes all arguments of the schema, in its order.

    Attributes:
        schema: name, arguments and results, as `torch.library` writes them. The first argument is
            a tensor, and its device decides what runs.
        family: operators of one family do floating-point operations at one speed.
        check: raises a `graftlm.errors.ModelError` for arguments that do not fit each other.
        reference: plain PyTorch, on any device.
        fake: results of the right shape, type and strides, for inputs without values.
        cases: what `graftlm doctor` runs.
        gradient: ``gradient(ctx, *slopes)``, the backward pass, as
            `torch.library.register_autograd` takes it; ``None``: not differentiable.
        keep: ``keep(ctx, arguments, result)`` keeps for ``gradient`` what it needs.
        flops: floating-point operations; 0: its time is that of reading and writing.
        once: the result is kept between steps, so that a step does not pay for it.
        workspace: bytes the reference holds while it runs, besides arguments and results.
        timing: for a type, the call that this family's speed is measured by; ``None``: another
            operator of the family has it, or the speed is that of a plain matrix product.
    """

    schema: str
    family: str
    check: Callable[..., None]
    reference: Callable[..., Any]
    fake: Callable[..., Any]
    cases: Callable[[], Sequence[Case]]
    gradient: Callable[..., Any] | None = None
    keep: Callable[..., None] | None = None
    flops: Callable[..., int] = _none
    once: bool = False
    workspace: Callable[..., int] = _none
    timing: Callable[[torch.dtype], Timing] | None = None
    name: str = dataclasses.field(init=False)
    dispatched: Callable[..., Any] = dataclasses.field(init=False, repr=False)
    _recorded: Callable[..., Any] = dataclasses.field(init=False, repr=False)
    _implementations: dict[str, list[Implementation]] = dataclasses.field(
        init=False, repr=False, default_factory=dict
    )
    _registered: dict[str, DispatcherKernel] = dataclasses.field(
        init=False, repr=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        name = self.schema.partition("(")[0]
        if (self.gradient is None) != (self.keep is None):
            raise TypeError(f"{name}: gradient and keep go together")
        qualified = f"graftlm::{name}"
        _LIBRARY.define(self.schema)  # type: ignore[no-untyped-call]
        # For every device. A kernel registered for one device comes before it.
        _LIBRARY.impl(name, self.run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        torch.library.register_fake(qualified, self.fake, lib=_LIBRARY)
        packet = getattr(torch.ops.graftlm, name)
        recorded: Callable[..., Any] = packet.default
        if self.gradient and self.keep:
            torch.library.register_autograd(
                qualified, self.gradient, setup_context=self.keep, lib=_LIBRARY
            )
            recorded = _autograd_function(name, self.run, self.gradient, self.keep).apply
        if self.flops is not _none:
            count_flops_by(packet, self.flops)
        self.name, self.dispatched, self._recorded = name, packet.default, recorded
        _OPERATORS[name] = self

    def __call__(self, first: Tensor, *rest: Any) -> Any:
        """Run the operator. Every argument of the schema is given, by position."""
        if is_observed(first) or self.registered_outside(first):
            return self.dispatched(first, *rest)
        if torch.is_grad_enabled():
            return self._recorded(first, *rest)
        return self.run(first, *rest)

    def run(self, first: Tensor, *rest: Any) -> Any:
        """Check the arguments, and run what `implementation` chooses, or the reference."""
        self.check(first, *rest)
        device = "cpu" if first.is_cpu else first.device.type
        for implementation in self._implementations.get(device, ()):
            if implementation.accepts(first, *rest):
                return implementation.function(first, *rest)
        return self.reference(first, *rest)

    def implementation(self, first: Tensor, *rest: Any) -> Implementation | None:
        """The newest implementation for the device of ``first`` that accepts the arguments."""
        return self._on("cpu" if first.is_cpu else first.device.type, first, *rest)

    def _on(self, device: str, *arguments: Any) -> Implementation | None:
        for implementation in self._implementations.get(device, ()):
            if implementation.accepts(*arguments):
                return implementation
        return None

    def registered_outside(self, first: Tensor) -> bool:
        """Whether other code registered a `torch.library` kernel for the device of ``first``."""
        device = "cpu" if first.is_cpu else first.device.type
        if device == "meta":  # where the dispatcher has the operator's own fake
            return False
        kernel = self._registered.get(device)
        if kernel is None:
            kernel = DispatcherKernel(f"graftlm::{self.name}", device)
            self._registered[device] = kernel
        return kernel.exists()

    def has_kernel(self, first: Tensor, *rest: Any) -> bool:
        """Whether a kernel, and not the reference, would run this call."""
        return self.registered_outside(first) or self.implementation(first, *rest) is not None

    def runs(self, first: Tensor, *rest: Any) -> str:
        """The name of what would run this call."""
        if self.registered_outside(first):
            return "torch.library"
        chosen = self.implementation(first, *rest)
        return "reference" if chosen is None else chosen.label

    def nbytes(self, arguments: Sequence[Any], result: Any) -> int:
        """Bytes read and written: the size of all input and output tensors."""
        leaves = tree_leaves((arguments, result))
        return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))

    def workspace_bytes(self, device: str | torch.device, first: Tensor, *rest: Any) -> int:
        """Bytes that a call holds on a type of device while it runs, besides arguments and results.

        0 where a plan is made on one device for another that has no kernel here.
        """
        kind = torch.device(device).type
        chosen = self._on(kind, first, *rest)
        if chosen is not None:
            return chosen.workspace(first, *rest)
        return self.workspace(first, *rest) if first.device.type == kind else 0


def operators() -> dict[str, Operator]:
    """Every operator by name."""
    return dict(_OPERATORS)


def implement(
    operator: str,
    device: str,
    function: Callable[..., Any],
    *,
    accepts: Callable[..., bool] = _always,
    workspace: Callable[..., int] = _none,
    label: str | None = None,
) -> Implementation:
    """Add a kernel of an operator for a device. It comes before those that are there.

    Args:
        operator: a name of `operators`, such as ``rms_norm``.
        device: a device type, such as ``cuda``.
        function: takes and returns what the operator's schema says. Its results share no memory
            with each other or with the arguments.
        accepts: whether it takes the given arguments; if not, the previous kernel runs.
        workspace: bytes it holds while it runs; planning counts them.
        label: its name in `graftlm doctor`; by default where it is defined.

    Returns:
        What `withdraw` takes.

    Raises:
        RequestError: there is no such operator or device type.
    """
    if operator not in _OPERATORS:
        known = ", ".join(sorted(_OPERATORS))
        raise RequestError(f"there is no operator {operator!r}: expected one of {known}")
    try:
        device = torch.device(device).type  # a kernel is for all devices of a type
    except RuntimeError as error:
        raise RequestError(f"{device!r} is no device type: expected cpu, cuda, …") from error
    label = label or f"{function.__module__}.{function.__qualname__}"
    made = Implementation(operator, device, function, accepts, workspace, label)
    _OPERATORS[operator]._implementations.setdefault(device, []).insert(0, made)
    return made


def withdraw(implementation: Implementation) -> None:
    """Remove an implementation that `implement` added."""
    _OPERATORS[implementation.operator]._implementations[implementation.device].remove(
        implementation
    )


def _autograd_function(
    name: str,
    run: Callable[..., Any],
    gradient: Callable[..., Any],
    keep: Callable[..., None],
) -> Any:
    """The autograd function of these parts."""

    # With `keep` as the class's `setup_context`, torch would inspect the signature of `run` in
    # every call, which takes 70 µs. functorch needs that; its calls are observed, so they do not
    # come here.
    def forward(ctx: Any, *inputs: Any) -> Any:
        output = run(*inputs)
        keep(ctx, inputs, output)
        return output

    members = {
        "forward": staticmethod(forward),
        "backward": staticmethod(once_differentiable(gradient)),
    }
    return type(name, (torch.autograd.Function,), members)
