"""Adds adapters to a model, switches them on and off, and removes them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from graftlm._compat.base_name import base_name
from graftlm._compat.fake import is_fake
from graftlm.adapters.adapted import adapted_modules, adapter_names, lora_modules
from graftlm.adapters.adapter import DEFAULT, Adapter, adapter_class
from graftlm.adapters.initial import eva, initialise, require_init
from graftlm.adapters.lora_bias import WithBias
from graftlm.adapters.lora_linear import LoRALinear
from graftlm.adapters.merge_aware import original_weights
from graftlm.adapters.names import matching
from graftlm.adapters.report import LoRAReport, describe
from graftlm.adapters.several import adapters_at, put_adapter, take_adapter
from graftlm.adapters.targets import Target, all_linear, left_out, select
from graftlm.adapters.trained_parts import TrainedPart, attach_trained, longest, select_trained
from graftlm.adapters.without_gradient import REASON, without_gradient
from graftlm.config import LoRAConfig
from graftlm.errors import TargetError
from graftlm.models.capabilities import forget
from graftlm.models.vocabulary import grow_vocabulary

if TYPE_CHECKING:
    from graftlm.adapters.initial.incremental_pca import IncrementalPCA
    from graftlm.adapters.merge_aware import Originals
    from graftlm.data.example import Example

__all__ = [
    "Biases",
    "activate",
    "active_adapters",
    "add_lora",
    "attach",
    "disable_adapters",
    "remove",
]


class Biases(NamedTuple):
    """Which biases of adapted linear layers train: their own, and one of the update."""

    own: bool
    update: bool


def add_lora(
    model: nn.Module,
    config: LoRAConfig,
    *,
    name: str = DEFAULT,
    rows: Sequence[Example] = (),
    originals: Originals | None = None,
    values: bool = True,
) -> LoRAReport:
    """Add adapters to the targeted modules, in place, and freeze everything else.

    The adapters start as a no-op, but for `lora.init` loftq. They are initialised from torch's
    global generator in the model's order: call ``torch.manual_seed`` first for reproducible
    adapters. If the model already has adapters of another ``name``, the new ones start inactive;
    see `activate`.

    Args:
        model: a transformers model, its linear layers plain or in a weight format.
        config: the targets and sizes of the adapters.
        name: the name of the adapters; one base may have several, each under its name.
        rows: training rows, for `lora.init` eva.
        originals: the weights from before they were quantised, for `lora.init` loftq; by default
            those of the model's name.
        values: false where the values will be read from a file, so that none are computed.

    An adapter that would never learn, because the logits do not depend on it, is taken off again
    and named in the report; see `without_gradient.py`.

    Raises:
        ConfigError: `lora.init` or `lora.variant` cannot be had.
        TargetError: a target matches nothing, cannot be adapted or is smaller than the rank
            (``all-linear`` leaves such layers out); a regular expression is invalid; the model
            already has adapters of that name; none of the adapters could learn. The model is
            unchanged.
    """
    require_init(config)
    undo = grow_vocabulary(model, longest(config))
    try:
        targets = select(model, config, name)
        parts, problems = select_trained(model, config, [target.name for target in targets])
        problems += _without_biases(targets, config)
        if problems:
            raise TargetError("\n".join(problems))
    except BaseException:
        undo()
        raise
    values = values and _has_values(model)
    dropped: list[str] = []
    directions: dict[str, IncrementalPCA] = {}
    if config.init == "eva" and values:
        directions = eva.components(model, targets, rows, config.eva_rho)
        wanted, targets = targets, eva.redistributed(targets, directions, config.eva_rho)
        dropped = [t.name for t in wanted if t.name not in {kept.name for kept in targets}]
    unasked = left_out(model, all_linear(model), config)
    biases = Biases(config.bias != "none", config.lora_bias)
    attach(model, targets, config.dropout, config.use_rslora, config.variant, name, biases, parts)
    dead, failure = _without_gradient(model, name)
    if {target.name for target in targets} <= set(dead):
        remove(model, name)
        raise TargetError(
            f"none of the {len(dead)} targeted layers would learn: on text the model's logits do "
            f"not depend on their adapters ({', '.join(dead[:6])}). Choose other targets."
        )
    for place in dead:
        for adapter in adapters_at(adapted_modules(model)[place]):
            if adapter.name == name:
                take_adapter(model, place, adapter)
    try:
        _initialise(model, config, name, originals, values, directions)
    except BaseException:
        remove(model, name)
        raise
    forget(model)
    unasked |= dict.fromkeys(dead, REASON)
    unasked |= dict.fromkeys(dropped, "EVA gave its rank to other layers")
    names = [name for name, _ in model.named_modules()]
    left = unasked | dict.fromkeys(matching(names, config.exclude), "excluded")
    report = describe(model, left, adapter=name)
    if failure:
        note = f"whether each adapter can learn was not tried; the model failed: {failure}"
        report = dataclasses.replace(report, notes=(*report.notes, note))
    return report


def _initialise(
    model: nn.Module,
    config: LoRAConfig,
    name: str,
    originals: Originals | None,
    values: bool,
    directions: Mapping[str, IncrementalPCA],
) -> None:
    """Give the new adapters the values of `lora.init`."""
    if config.init == "loftq" and originals is None and values:
        originals = original_weights(base_name(model))
    initialise(model, config.init, name, originals, values)
    for place, adapter in lora_modules(model, name).items():
        adapter.init = config.init
        if config.freeze_a and isinstance(adapter, LoRALinear):
            adapter.kept = frozenset({"lora_A"})
            adapter.lora_A.requires_grad_(False)
        if place in directions and isinstance(adapter, LoRALinear):
            start = directions[place].directions[: adapter.rank]
            adapter.begin_from(start, torch.zeros_like(adapter.lora_B))


def _without_biases(targets: Iterable[Target], config: LoRAConfig) -> list[str]:
    """The problem of a request for biases that some target cannot train."""
    if config.bias == "none" and not config.lora_bias:
        return []
    classes = ((t.name, adapter_class(config.variant, t.module)) for t in targets)
    unfit = [name for name, cls in classes if cls is None or not issubclass(cls, WithBias)]
    if config.variant != "lora" and (unfit or config.lora_bias):
        return [f"lora.variant={config.variant} trains no such biases: leave bias or lora_bias out"]
    if unfit and config.lora_bias:
        return [f"lora_bias is for linear layers, and {unfit[0]} is none"]
    return []


def _has_values(model: nn.Module) -> bool:
    """Whether the model's tensors have values: not on the meta device, and not faked for a plan."""
    return not any(p.is_meta or is_fake(p) for p in model.parameters())


def _without_gradient(model: nn.Module, name: str) -> tuple[list[str], str]:
    """`without_gradient`, with the adapters of this name active while it asks."""
    before = active_adapters(model)
    if before == [name]:
        return without_gradient(model, name)
    activate(model, name)
    try:
        return without_gradient(model, name)
    finally:
        for adapter in _adapters(model):
            _switch(adapter, adapter.name in before)


def attach(
    model: nn.Module,
    targets: Iterable[Target],
    dropout: float,
    use_rslora: bool,
    variant: str = "lora",
    name: str = DEFAULT,
    biases: Biases | None = None,
    trained: Iterable[TrainedPart] = (),
) -> None:
    """Freeze ``model`` and add an adapter to each target, without checking the request.

    Args:
        model: the model.
        targets: the modules to adapt.
        dropout: of the adapters.
        use_rslora: their scaling.
        variant: the kind of adapter.
        name: of the new adapters.
        biases: which biases of the adapted layers train.
        trained: the parts of the base that train beside the adapters.
    """
    first = not adapted_modules(model)
    if first:
        model.requires_grad_(False)
    for target in targets:
        cls = adapter_class(variant, target.module)
        assert cls is not None, f"{target.name} was checked before"
        adapter = cls(target.module, target.rank, target.alpha, dropout, use_rslora, name)
        if biases is not None and isinstance(adapter, WithBias):
            adapter.train_biases(*biases)
        put_adapter(model, target.name, adapter)
        _switch(adapter, first)
    for adapter in attach_trained(model, trained, name):
        _switch(adapter, first)
    forget(model)


def remove(model: nn.Module, name: str | None = None) -> None:
    """Remove the adapters, in place, and restore the base modules.

    Args:
        model: any model.
        name: only the adapters of this name.

    Raises:
        TargetError: there is no adapter of that name.
    """
    if name is not None:
        _require_names(model, [name])
    for place, there in adapted_modules(model).items():
        for adapter in adapters_at(there):
            if name in (None, adapter.name):
                take_adapter(model, place, adapter)
    forget(model)


def activate(model: nn.Module, *names: str) -> None:
    """Enable these adapters for use and training, and disable all others.

    The update of a module is the sum of the updates of its active adapters.

    Raises:
        TargetError: there is no adapter of one of the names.
    """
    _require_names(model, names)
    for adapter in _adapters(model):
        _switch(adapter, adapter.name in names)
    forget(model)


def active_adapters(model: nn.Module) -> list[str]:
    """The names of the active adapters, in the order they were added."""
    on = {adapter.name for adapter in _adapters(model) if adapter.enabled}
    return [name for name in adapter_names(model) if name in on]


@contextlib.contextmanager
def disable_adapters(model: nn.Module) -> Iterator[None]:
    """Disable all adapters inside the ``with`` block; blocks may be nested."""
    before = [(adapter, adapter.enabled) for adapter in _adapters(model)]
    try:
        for adapter, _ in before:
            adapter.enabled = False
        yield
    finally:
        for adapter, enabled in before:
            adapter.enabled = enabled


def _adapters(model: nn.Module) -> list[Adapter]:
    return [a for there in adapted_modules(model).values() for a in adapters_at(there)]


def _switch(adapter: Adapter, on: bool) -> None:
    adapter.enabled = on
    for attribute, parameter in adapter.adapter_parameters().items():
        parameter.requires_grad_(on and attribute not in adapter.kept)


def _require_names(model: nn.Module, names: Iterable[str]) -> None:
    there = adapter_names(model)
    if missing := [name for name in names if name not in there]:
        known = ", ".join(there) or "none"
        raise TargetError(f"the model has no adapter {missing[0]!r}; it has {known}")
