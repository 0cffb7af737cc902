"""Replace RMS norms, gated feed-forward layers and the output layer by fused modules.

transformers computes these in several operations. On a CPU the additional passes over memory take
up to a third of a training step. The class name does not tell whether a module computes the same
function as ours, so both are run on the same few rows, small and large. The module keeps its sizes,
scales and settings for this test; its weights are replaced by those of the probe. A module with
other results is not replaced.

The values of the weights have no influence, so a model on the meta device gets the same decision as
a loaded one.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from graftlm._compat.tracing import modes_off
from graftlm.kernels.gated_unit import GELU_TANH, SILU, gated_unit
from graftlm.models.fused import GatedMLP, OutputLinear, RMSNorm

__all__ = ["fuse_gated_units", "fuse_norms", "quick_output"]

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
CLOSE = 1e-5
"""Largest difference of an output, as a share of the largest in its row."""
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def fuse_norms(model: nn.Module) -> list[str]:
    """Replace RMS norms, in place; their weights and names stay. Returns the names of the norms."""
    return _replace(
        model, _is_norm, _shift, lambda norm, shift: RMSNorm(norm.weight, _eps(norm), shift)
    )


def fuse_gated_units(model: nn.Module) -> list[str]:
    """Replace gated feed-forward layers, in place; their projections and names stay."""
    return _replace(
        model,
        _is_gated_unit,
        _activation,
        lambda layer, act: GatedMLP(layer.gate_proj, layer.up_proj, layer.down_proj, act),
    )


def quick_output(model: Any) -> list[str]:
    """Replace the output layer, if it is a plain linear layer, by one that is fast for few rows."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return []
    names = [name for name, module in model.named_modules() if module is head]
    model.set_output_embeddings(OutputLinear(head))
    return names


def _replace(
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
    for part in _own_parts(module):
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


def _is_norm(module: nn.Module) -> bool:
    return (
        type(module).__name__.endswith("RMSNorm")
        and type(module) is not RMSNorm
        and [name for name, _ in module.named_parameters()] == ["weight"]
        and isinstance(_eps(module), float)
        and _reads_one_tensor(module)
    )


def _eps(norm: nn.Module) -> Any:
    return getattr(norm, "eps", getattr(norm, "variance_epsilon", None))


def _shift(norm: Any) -> float | None:
    """The number that a norm adds to its weight; ``None`` if it differs from `RMSNorm`."""
    eps, width = _eps(norm), norm.weight.numel()
    # A row near ε, an ordinary one, and one large enough to reach a clamp.
    x = torch.randn(3, width) * torch.tensor([[eps**0.5 or 1e-3], [1.0], [1e4]])
    weight = nn.Parameter(torch.randn(norm.weight.shape))
    with _swapped(norm, weight=weight):
        wanted = _outputs(norm, x)
    for shift in (0.0, 1.0):
        if weight.dim() == 1 and _same(wanted, RMSNorm(weight, eps, shift)(x)):
            return shift
    return None


def _is_gated_unit(module: nn.Module) -> bool:
    children = {name for name, _ in module.named_children()}
    return (
        children - {"act_fn"} == set(PROJECTIONS)
        and type(module) is not GatedMLP
        and next(module.parameters(recurse=False), None) is None
        and _reads_one_tensor(module)
    )


def _activation(layer: Any) -> tuple[float, float] | None:
    """(k, a) of a layer's activation; ``None`` if the layer differs from `GatedMLP`."""
    width = getattr(layer.gate_proj, "out_features", None)
    depth = getattr(layer.gate_proj, "in_features", None)
    if not isinstance(width, int) or not isinstance(depth, int):
        return None
    x = torch.randn(4, depth)
    gate = torch.randn(4, width) * torch.tensor([[1.0], [4.0], [1e4], [1.0]])
    up = torch.randn(4, width) * torch.tensor([[1.0], [1.0], [1.0], [1e4]])
    stand_ins = {
        "gate_proj": _Projection(x, gate),
        "up_proj": _Projection(x, up),
        "down_proj": nn.Identity(),
    }
    with _swapped(layer, **stand_ins):
        wanted = _outputs(layer, x)
    for act in (SILU, GELU_TANH):
        if _same(wanted, gated_unit(gate, up, act)):
            return act
    return None


class _Projection(nn.Module):
    """Replaces a linear layer in the probe: returns a known output and checks its input."""

    def __init__(self, expected: Tensor, output: Tensor) -> None:
        super().__init__()
        self.expected, self.output = expected, output

    def forward(self, x: Tensor) -> Tensor:
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
def _swapped(module: nn.Module, **attributes: Any) -> Iterator[None]:
    own = {name: getattr(module, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in own.items():
            setattr(module, name, value)


def _own_parts(module: nn.Module) -> Iterator[nn.Module]:
    """The module and its submodules without projections, which the probe replaces."""
    yield module
    for name, child in module.named_children():
        if name not in PROJECTIONS:
            yield from child.modules()


def _reads_one_tensor(module: nn.Module) -> bool:
    """Whether ``module`` takes one argument and holds no other tensor."""
    if any(next(part.buffers(recurse=False), None) is not None for part in _own_parts(module)):
        return False  # on the meta device its values are unknown
    known = inspect.signature(type(module).forward).parameters  # self, and the argument
    return len(known) == 2


def _outputs(module: nn.Module, x: Tensor) -> list[Tensor] | None:
    """The outputs of ``module`` for ``x`` in training and evaluation mode; ``None`` if it fails."""
    training = module.training
    try:
        return [module.train(mode)(x) for mode in (True, False)]
    except (TypeError, AttributeError, RuntimeError, ValueError, IndexError):
        return None  # it uses its weight or input in another way
    finally:
        module.train(training)


def _same(wanted: list[Tensor] | None, ours: Tensor) -> bool:
    if wanted is None:
        return False
    for theirs in wanted:
        if not isinstance(theirs, Tensor) or theirs.shape != ours.shape:
            return False
        largest = theirs.abs().amax(-1, keepdim=True)
        if not ((theirs - ours).abs() <= CLOSE * largest).all():
            return False
    return True
