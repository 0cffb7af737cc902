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

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from graftlm.kernels.gated_unit import GELU_TANH, SILU, gated_unit
from graftlm.models.fused import GatedMLP, OutputLinear, RMSNorm
from graftlm.models.replace_proven import (
    KnownOutput,
    own_parts,
    replace_proven,
    swapped,
)

__all__ = ["fuse_gated_units", "fuse_norms", "quick_output"]

GATED = {"gate_proj", "up_proj", "down_proj"}
CLOSE = 1e-5
"""Largest difference of an output, as a share of the largest in its row."""


def fuse_norms(model: nn.Module) -> list[str]:
    """Replace RMS norms, in place; their weights and names stay. Returns the names of the norms."""
    return replace_proven(
        model, _is_norm, _shift, lambda norm, shift: RMSNorm(norm.weight, _eps(norm), shift)
    )


def fuse_gated_units(model: nn.Module) -> list[str]:
    """Replace gated feed-forward layers, in place; their projections and names stay."""
    return replace_proven(
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
    with swapped(norm, weight=weight):
        wanted = _outputs(norm, x)
    for shift in (0.0, 1.0):
        if weight.dim() == 1 and _same(wanted, RMSNorm(weight, eps, shift)(x)):
            return shift
    return None


def _is_gated_unit(module: nn.Module) -> bool:
    children = {name for name, _ in module.named_children()}
    return (
        children - {"act_fn"} == GATED
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
        "gate_proj": KnownOutput(x, gate),
        "up_proj": KnownOutput(x, up),
        "down_proj": nn.Identity(),
    }
    with swapped(layer, **stand_ins):
        wanted = _outputs(layer, x)
    for act in (SILU, GELU_TANH):
        if _same(wanted, gated_unit(gate, up, act)):
            return act
    return None


def _reads_one_tensor(module: nn.Module) -> bool:
    """Whether ``module`` takes one argument and holds no other tensor."""
    if any(next(part.buffers(recurse=False), None) is not None for part in own_parts(module)):
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
