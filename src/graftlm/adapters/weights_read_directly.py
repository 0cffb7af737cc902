"""Finds adapted layers that the model does not call but whose weight it reads itself.

    live      y = f(W)         the adapter is never asked (`dt_proj` of Mamba)
    merged    y = f(W + Δ)     merged, it would act

`add_lora` puts no adapter there; other tools do. A merge leaves such updates out, so that it does
what the adapter does, and says which. A layer that is not called on text and not read either (the
vision side of Gemma 3) is merged as any other.

A forward pass of a few tokens shows which layers are called. If one is not, a second pass builds
autograd's graph: a weight that is read is a leaf of the graph behind the logits. No value counts,
so that the model may be on the meta device.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from graftlm._compat.compiled import uncompiled
from graftlm.adapters.adapted import adapted_modules
from graftlm.adapters.several import adapters_at
from graftlm.adapters.without_gradient import FAILURES, layer_of_experts, leaves, short_row
from graftlm.frozen.linear import FrozenLinear
from graftlm.models.probing import being_probed, calls_of

__all__ = ["SMALL", "in_effect", "say_left_out", "weights_read_directly", "without_effect"]

SMALL = 0.01
"""Stands for every weight where no value counts."""


def without_effect(model: nn.Module) -> list[str]:
    """`weights_read_directly`; says on stderr which those are, or that it could not be tried."""
    names, failure = [], ""
    try:
        names = weights_read_directly(model)
    except FAILURES as error:
        failure = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    say_left_out(names, failure)
    return names


def in_effect(name: str, part: str, dead: Collection[str]) -> bool:
    """Whether a merge takes a part of an adapter: a bias that trains is read with its values."""
    return name not in dead or part != "weight"


def say_left_out(names: list[str], failure: str) -> None:
    """Say on stderr which updates are not merged, or why that could not be found out."""
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        print(
            f"NOTE: the update of {names[0]}{more} has no effect and is not merged: the model "
            "reads the weight there itself and never asks the adapter",
            file=sys.stderr,
        )
    if failure:
        print(
            f"NOTE: whether each layer of the adapter has an effect was not tried: {failure}",
            file=sys.stderr,
        )


def weights_read_directly(model: Any, *, use_cache: bool = False) -> list[str]:
    """The adapted layers of ``model`` that it does not call but whose weight it reads.

    A model that cannot be asked, because it names no token table, answers with none. The errors are
    those of the model's forward pass.

    Args:
        model: a model with adapters.
        use_cache: whether the forward pass fills a cache.
    """
    ids = short_row(model)
    if ids is None:
        return []
    silent = _not_called(model, ids, use_cache)
    if not silent:
        return []
    adapted = adapted_modules(model)
    with contextlib.ExitStack() as restored:
        weights = {name: _watched(adapted[name], restored) for name in silent}
        with being_probed(model), torch.enable_grad():
            read = leaves(_logits(model, ids, use_cache))
    return [name for name, weight in weights.items() if id(weight) in read]


def _watched(there: Any, restored: contextlib.ExitStack) -> nn.Parameter | None:
    """A parameter that stands for the weight of the layer at ``there`` and needs a gradient.

    It is a new one, because another module may share the layer's weight and read it.
    """
    base = there.base
    weight = getattr(base, "weight", None)
    if isinstance(weight, nn.Parameter):
        watched = nn.Parameter(weight.detach())
        restored.callback(setattr, base, "weight", weight)
        base.weight = watched
        return watched
    if not isinstance(base, FrozenLinear):
        return None
    same = torch.full((), SMALL, dtype=base.weight.dtype, device=base.weight.device)
    watched = nn.Parameter(same.expand(base.weight.shape))  # takes no memory
    restored.callback(setattr, there, "base", base)
    with torch.device("meta"):
        there.base = nn.Linear(base.in_features, base.out_features, base.bias is not None)
    there.base.weight, there.base.bias = watched, base.bias
    return watched


def _not_called(model: nn.Module, ids: Tensor, use_cache: bool) -> list[str]:
    """The adapted layers that a forward pass does not call.

    An expert that was not chosen counts as called if another expert of the same layer was.
    """
    adapted = {
        name: there
        for name, there in adapted_modules(model).items()
        if all(one.variant != "trained" for one in adapters_at(there))  # their weight is read
    }
    with calls_of(adapted.items()) as called, being_probed(model):
        _logits(model, ids, use_cache)
    groups = {layer_of_experts(name) for name in called}
    return [name for name in adapted if layer_of_experts(name) not in groups]


def _logits(model: nn.Module, ids: Tensor, use_cache: bool) -> Tensor:
    logits: Tensor = uncompiled(model)(input_ids=ids, use_cache=use_cache).logits
    return logits
