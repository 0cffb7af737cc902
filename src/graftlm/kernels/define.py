"""Telling PyTorch of an operator: its schema, what carries it out, its shapes without data.

A call through PyTorch's dispatcher to an operator written in Python costs about 50 µs, mostly for a
gradient that may not be wanted: for one token of a small model, hundreds of calls that do less work
than that. What `define` gives back therefore goes straight to the code where nobody is watching.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

__all__ = ["LIBRARY", "define"]

LIBRARY = torch.library.Library("graftlm", "DEF")  # type: ignore[no-untyped-call]


def define(
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    backend: str = "CompositeExplicitAutograd",
) -> Callable[..., Any]:
    """Define ``graftlm::<name>``.

    Args:
        schema: as `torch.library` writes it, beginning with the name.
        run: carries it out.
        fake: gives outputs of the right shapes and types for inputs without values.
        backend: the dispatch key ``run`` is for; by default every device.

    Returns:
        What calls the operator; its first argument is a tensor.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    LIBRARY.impl(name, run, backend)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"graftlm::{name}", fake, lib=LIBRARY)
    operator = getattr(getattr(torch.ops.graftlm, name), "default")  # noqa: B009 - typed as Any

    def call(first: Tensor, *rest: Any) -> Any:
        return run(first, *rest) if _unwatched(first) else operator(first, *rest)

    return call


def _unwatched(tensor: Tensor) -> bool:
    """Whether only the caller needs to know: no gradient, mode, transform, trace or profiler."""
    return not (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or type(tensor) not in (Tensor, nn.Parameter)
        or tensor.is_meta
        or is_in_torch_dispatch_mode()
        or torch.autograd.profiler._is_profiler_enabled
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.maybe_current_level() is not None
    )
