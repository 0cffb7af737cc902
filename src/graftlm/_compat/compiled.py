"""Names inside a module that `torch.compile` wraps.

`torch.compile(module)` returns a wrapper that holds the module under `_orig_mod` (seen in torch 2.1
to 2.13). The wrapper's parameters therefore carry names that the model itself does not have.
"""

from __future__ import annotations

from torch import nn

__all__ = ["uncompiled", "without_compile_prefix"]

WRAPPED = "_orig_mod"


def without_compile_prefix(name: str) -> str:
    """The name a module or tensor has in the model that was compiled."""
    return ".".join(part for part in name.split(".") if part != WRAPPED)


def uncompiled(module: nn.Module) -> nn.Module:
    """The module that was compiled; ``module`` itself if it was not."""
    inner = getattr(module, WRAPPED, module)
    return inner if isinstance(inner, nn.Module) else module
