"""The mode of a model during a capability test, and which of its modules a pass calls."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

__all__ = ["being_probed", "calls_of"]


@contextlib.contextmanager
def being_probed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients or compiled code; afterwards each mode is restored."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def calls_of(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[set[str]]:
    """The names of those of ``modules`` that are called inside the block, as they are called."""
    called: set[str] = set()
    with contextlib.ExitStack() as hooks:
        for name, module in modules:
            note = functools.partial(_note, called, name)
            hooks.callback(module.register_forward_pre_hook(note).remove)
        yield called


def _note(called: set[str], name: str, *_: Any) -> None:
    called.add(name)
