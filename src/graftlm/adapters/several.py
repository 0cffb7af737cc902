"""Several named adapters on one base, any of them active.

    y = base(x) + Σ update_i(x)          over the adapters that are on (PEFT's meaning too)

A module with one adapter is replaced by that `Adapter`; a module with more, by `SeveralAdapters`.
If only one adapter remains, it replaces the `SeveralAdapters` again. The first active adapter
computes the base and its update in one kernel, as it does alone; each further one adds its update.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from graftlm.adapters.adapter import Adapter
from graftlm.frozen.experts import DenseExperts
from graftlm.models.experts import expert_weights, hold, parent_of, release

__all__ = ["SeveralAdapters", "adapters_at", "put_adapter", "take_adapter"]


class SeveralAdapters(nn.Module):
    """A frozen module with several named adapters; see the file's docstring.

    Args:
        first: the adapter that was alone before; its base moves here.
    """

    base: nn.Module

    def __init__(self, first: Adapter) -> None:
        super().__init__()
        self.training = first.training
        self.base = first.release()
        self.adapters = nn.ModuleList([first])

    def forward(self, x: Tensor, *routing: Any) -> Tensor:
        """The base's output for ``x`` plus the active updates.

        Experts also take ``routing``: the rows of each expert, and the biases.
        """
        on = [adapter for adapter in self.named() if adapter.enabled]
        if not on:
            return cast("Tensor", self.base(x, *routing))
        y = on[0].product(self.base, x, *routing)
        for adapter in on[1:]:
            y = adapter.added(self.base, y, x, *routing[:1])
        return y

    def named(self) -> list[Adapter]:
        """The adapters in the order they were added."""
        return cast("list[Adapter]", list(self.adapters))

    def __getattr__(self, name: str) -> Any:
        """Look up missing attributes in the base: ``weight``, ``bias``, sizes."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


def adapters_at(module: nn.Module) -> list[Adapter]:
    """The adapters that ``module`` is or contains; empty for other modules."""
    if isinstance(module, Adapter):
        return [module]
    return module.named() if isinstance(module, SeveralAdapters) else []


def put_adapter(model: nn.Module, place: str, adapter: Adapter) -> None:
    """Add ``adapter`` to the module at ``place``, in place."""
    if isinstance(adapter.base, DenseExperts):
        _hold_experts(model, place, adapter.base)
    there = model.get_submodule(place)
    adapter.train(there.training)
    if isinstance(there, Adapter):
        there = SeveralAdapters(there)
        model.set_submodule(place, there)
    if isinstance(there, SeveralAdapters):
        adapter.release()
        there.adapters.append(adapter)
    else:
        model.set_submodule(place, adapter)


def take_adapter(model: nn.Module, place: str, adapter: Adapter) -> None:
    """Remove ``adapter`` from ``place``, in place; after the last one the base is restored."""
    there = model.get_submodule(place)
    if isinstance(there, Adapter):
        model.set_submodule(place, there.base)
        if isinstance(there.base, DenseExperts):
            release(*parent_of(model, place))
        return
    assert isinstance(there, SeveralAdapters)
    rest = [other for other in there.named() if other is not adapter]
    if len(rest) == 1:
        rest[0].base = there.base
        model.set_submodule(place, rest[0])
    else:
        there.adapters = nn.ModuleList(rest)


def _hold_experts(model: nn.Module, place: str, stack: DenseExperts) -> None:
    """Let the model compute its experts by ``stack``, unless it does already."""
    weights = expert_weights(model)
    if place in weights:
        hold(weights[place], stack)
