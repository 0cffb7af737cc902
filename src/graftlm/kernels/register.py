"""Telling PyTorch of an operator: its schema, what carries it out, its shapes, its gradient.

A call through PyTorch's dispatcher to an operator written in Python costs about 50 µs, and as much
again in the backward pass; a step of a small model makes hundreds of calls, and for few tokens they
do less work than that. What `define` gives back therefore goes straight to the code where nobody is
watching: as it is, or, where gradients are recorded, as an autograd function of the same parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

__all__ = ["define"]

_LIBRARY = torch.library.Library("graftlm", "DEF")  # type: ignore[no-untyped-call]


def define(
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    gradient: Callable[..., Any] | None = None,
    keep: Callable[..., None] | None = None,
    backend: str = "CompositeExplicitAutograd",
) -> Callable[..., Any]:
    """Define ``graftlm::<name>``.

    Args:
        schema: as `torch.library` writes it, beginning with the name.
        run: carries it out.
        fake: gives outputs of the right shapes and types for inputs without values.
        gradient: the backward pass, as `torch.library.register_autograd` takes it; ``None``: there
            is none.
        keep: ``keep(ctx, inputs, output)`` keeps for ``gradient`` what it needs; given with it.
        backend: the dispatch key ``run`` is for; by default every device.

    Returns:
        What calls the operator, with every argument of the schema; the first is a tensor.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    _LIBRARY.impl(name, run, backend)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"graftlm::{name}", fake, lib=_LIBRARY)
    operator = getattr(getattr(torch.ops.graftlm, name), "default")  # noqa: B009 - typed as Any
    recorded: Callable[..., Any] = operator
    if (gradient is None) != (keep is None):
        raise TypeError(f"{name}: gradient and keep go together")
    if gradient and keep:
        torch.library.register_autograd(
            f"graftlm::{name}", gradient, setup_context=keep, lib=_LIBRARY
        )
        recorded = _function(name, run, gradient, keep).apply

    def call(first: Tensor, *rest: Any) -> Any:
        if not _unwatched(first):
            return operator(first, *rest)
        return recorded(first, *rest) if torch.is_grad_enabled() else run(first, *rest)

    return call


def _function(
    name: str,
    run: Callable[..., Any],
    gradient: Callable[..., Any],
    keep: Callable[..., None],
) -> Any:
    """The autograd function of these parts."""

    # Were `keep` the class's `setup_context`, PyTorch would inspect the signature of `run` in every
    # call (70 µs of four arguments). This style is not for functorch; `call` leaves that to torch.
    def forward(ctx: Any, *inputs: Any) -> Any:
        output = run(*inputs)
        keep(ctx, inputs, output)
        return output

    members = {
        "forward": staticmethod(forward),
        "backward": staticmethod(once_differentiable(gradient)),
    }
    return type(name, (torch.autograd.Function,), members)


def _unwatched(tensor: Tensor) -> bool:
    """Whether only the caller needs to know: no mode, transform, trace or profiler."""
    return not (
        torch.compiler.is_compiling()
        or type(tensor) not in (Tensor, nn.Parameter)
        or tensor.is_meta
        or is_in_torch_dispatch_mode()
        or torch.autograd.profiler._is_profiler_enabled
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.maybe_current_level() is not None
    )
