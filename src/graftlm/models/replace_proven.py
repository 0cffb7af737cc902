"""Replace modules of a model by others that are proven equal on the instance.

The proof runs both on the same few numbers. The module keeps its sizes, scales and settings; its
weights, which a model on the meta device lacks, are replaced by those of the proof.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from graftlm._compat.tracing import modes_off

__all__ = [
    "PROJECTIONS",
    "KnownOutput",
    "own_parts",
    "replace_proven",
    "swapped",
]

PROJECTIONS = ("gate_proj", "up_proj", "down_proj", "q_proj", "k_proj", "v_proj", "o_proj")
"""The linear layers, which a proof replaces by known outputs."""
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def replace_proven(
    model: nn.Module,
    candidate: Callable[[nn.Module], bool],
    decide: Callable[[Any], Any],
    fused: Callable[[Any, Any], nn.Module],
) -> list[str]:
    """Call ``decide`` on each candidate. Pass its result, unless ``None``, to ``fused``.

    ``decide`` runs once for modules that do not differ in anything that influences its result.
    """
    names: list[str] = []
    answers: dict[Any, Any] = {}
    with modes_off(), _probing():
        for name, module in list(model.named_modules()):
            if not name or not candidate(module):
                continue
            key = _likeness(module)
            answer = answers.get(key) if key in answers else decide(module)
            if key is not None:
                answers[key] = answer
            if answer is not None:
                model.set_submodule(name, fused(module, answer).train(module.training))
                names.append(name)
    return names


def _likeness(module: nn.Module) -> Any:
    """A key for the function that a module computes; ``None`` if it cannot be compared by value."""
    key: list[Any] = []
    for name in PROJECTIONS:
        projection = getattr(module, name, None)
        key += [getattr(projection, "in_features", None), getattr(projection, "out_features", None)]
    for part in own_parts(module):
        key += [type(part), *(tuple(p.shape) for p in part.parameters(recurse=False))]
        for name, value in vars(part).items():
            if name in _OF_EVERY_MODULE:
                continue
            if isinstance(value, PretrainedConfig | FunctionType | type):
                value = id(value)
            if not isinstance(value, int | float | str | torch.dtype | None):
                return None
            key.append((name, value))
    return tuple(key)


class KnownOutput(nn.Module):
    """Replaces a linear layer in a proof: returns a known output and checks its input."""

    def __init__(self, expected: Tensor, output: Tensor) -> None:
        super().__init__()
        self.expected, self.output = expected, output

    def forward(self, x: Tensor) -> Tensor:
        """``expected`` → ``output``."""
        if x.shape != self.expected.shape or not torch.equal(x, self.expected):
            raise ValueError("the layer changes its input before the projection")
        return self.output.clone()


@contextlib.contextmanager
def _probing() -> Iterator[None]:
    """Create real float32 tensors from a separate random generator, even for a meta model."""
    default = torch.get_default_dtype()
    with torch.no_grad(), torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # `torch.manual_seed` would reset a GPU's as well
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


@contextlib.contextmanager
def swapped(module: nn.Module, **attributes: Any) -> Iterator[None]:
    """Other values for these attributes of ``module`` inside this context."""
    own = {name: getattr(module, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in own.items():
            setattr(module, name, value)


def own_parts(module: nn.Module) -> Iterator[nn.Module]:
    """The module and its submodules without projections, which a proof replaces."""
    yield module
    for name, child in module.named_children():
        if name not in PROJECTIONS:
            yield from child.modules()
