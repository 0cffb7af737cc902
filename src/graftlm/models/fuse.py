"""Replace RMS norms, gated feed-forward layers and the output layer by modules that read once.

transformers' classes spell these out in separate operations; on a CPU the passes over memory cost
as much as a third of a training step. Whether a class computes what ours does is not read from its
name: one of its kind is made small, with random weights, and the outputs are compared. A class that
does something else keeps its own code.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import nn

from graftlm.kernels.gated_unit import GELU_TANH, SILU
from graftlm.models.fused.gated_mlp import GatedMLP
from graftlm.models.fused.output_linear import OutputLinear
from graftlm.models.fused.rms_norm import RMSNorm

__all__ = ["fuse_elementwise", "quick_output"]

SMALL = 16
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def fuse_elementwise(model: nn.Module) -> int:
    """Replace what can be replaced, in place; parameters and their names stay.

    Returns:
        How many modules were replaced.
    """
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            fused = _fused(child)
            if fused is not None:
                fused.train(child.training)
                setattr(parent, name, fused)
                replaced += 1
    return replaced


def quick_output(model: Any) -> None:
    """Let the output layer read its weight once for few rows; a plain linear layer only."""
    head = model.get_output_embeddings()
    if type(head) is nn.Linear:
        model.set_output_embeddings(OutputLinear(head))


def _fused(module: nn.Module) -> nn.Module | None:
    kind: Any = type(module)
    if kind.__name__.endswith("RMSNorm") and [n for n, _ in module.named_parameters()] == [
        "weight"
    ]:
        eps = getattr(module, "eps", getattr(module, "variance_epsilon", None))
        shift = _norm_shift(kind)
        if shift is not None and isinstance(eps, float):
            return RMSNorm(module.weight, eps, shift)  # type: ignore[arg-type]
    children = [name for name, _ in module.named_children()]
    config = getattr(module, "config", None)
    if set(children) - {"act_fn"} == set(PROJECTIONS) and config is not None:
        act = _activation(kind, _Key(config))
        if act is not None:
            return _gated_mlp(module, act)
    return None


def _gated_mlp(module: Any, act: tuple[float, float]) -> GatedMLP:
    return GatedMLP(module.gate_proj, module.up_proj, module.down_proj, act)


@functools.cache
@torch.no_grad()
def _norm_shift(kind: Any) -> float | None:
    """What the class adds to its weight, or ``None`` if it is not the norm of `RMSNorm`."""
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.randn(3, SMALL)
        try:
            theirs = kind(SMALL, eps=1e-3)
            theirs.weight.copy_(torch.randn(SMALL))
            wanted = theirs(x)
        except (TypeError, AttributeError, RuntimeError):
            return None  # made or called in another way: not of this kind
        for shift in (0.0, 1.0):
            if torch.allclose(RMSNorm(theirs.weight, 1e-3, shift)(x), wanted, atol=1e-5):
                return shift
    return None


class _Key:
    """A config, hashed by what the feed-forward layer reads of it."""

    def __init__(self, config: Any) -> None:
        self.config = config
        names = ("hidden_act", "hidden_activation", "mlp_bias")
        self.key = tuple(str(getattr(config, name, None)) for name in names)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.key == other.key


@functools.cache
@torch.no_grad()
def _activation(kind: Any, key: _Key) -> tuple[float, float] | None:
    """(k, a) of the class's activation, or ``None`` if it is not the layer of `GatedMLP`."""
    config = copy.deepcopy(key.config)
    config.hidden_size, config.intermediate_size = SMALL, 2 * SMALL
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = 4 * torch.randn(3, SMALL)
        try:
            theirs = kind(config).float()
            wanted = theirs(x)
        except (TypeError, AttributeError, RuntimeError):
            return None
        for act in (SILU, GELU_TANH):
            if torch.allclose(_gated_mlp(theirs, act)(x), wanted, atol=1e-5):
                return act
    return None
