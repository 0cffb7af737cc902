"""Putting adapters into a model, switching them off for a moment, taking them out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn

from graftlm.adapters.lora_embedding import LoRAEmbedding
from graftlm.adapters.lora_linear import LoRALinear
from graftlm.adapters.report import LoRAReport, describe
from graftlm.adapters.targets import Target, lora_modules, matching, select
from graftlm.config import LoRAConfig
from graftlm.models.capabilities import forget

__all__ = ["add_lora", "attach", "disable_adapters", "lora_parameters", "remove"]


def add_lora(model: nn.Module, config: LoRAConfig) -> LoRAReport:
    """Put adapters beside the targeted modules, in place, and freeze everything else.

    The adapters start as a no-op. They are drawn from torch's global generator in the model's
    order: call ``torch.manual_seed`` first to get the same ones again.

    Args:
        model: a transformers model, its linear layers plain or in NF4.
        config: where the adapters go and how large they are.

    Raises:
        TargetError: a target matches nothing, cannot be adapted or is smaller than the rank; a
            regular expression is invalid; the model already has adapters. The model is unchanged.
    """
    attach(model, select(model, config), config.dropout, config.use_rslora)
    names = [name for name, _ in model.named_modules()]
    return describe(model, excluded=matching(names, config.exclude))


def attach(model: nn.Module, targets: Iterable[Target], dropout: float, use_rslora: bool) -> None:
    """Freeze ``model`` and wrap each target's module, without checking the request."""
    model.requires_grad_(False)
    for target in targets:
        wrapped: LoRALinear | LoRAEmbedding
        if isinstance(target.module, nn.Embedding):
            wrapped = LoRAEmbedding(target.module, target.rank, target.alpha, use_rslora)
        else:
            wrapped = LoRALinear(target.module, target.rank, target.alpha, dropout, use_rslora)
        wrapped.train(target.module.training)
        model.set_submodule(target.name, wrapped)
    forget(model)


def remove(model: nn.Module) -> None:
    """Take the adapters out, in place; the base modules return to where they were."""
    for name, module in lora_modules(model).items():
        model.set_submodule(name, module.base)
    forget(model)


def lora_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """``(name, parameter)`` of every adapter matrix, A before B, in the model's order."""
    for name, module in lora_modules(model).items():
        yield f"{name}.lora_A", module.lora_A
        yield f"{name}.lora_B", module.lora_B


@contextlib.contextmanager
def disable_adapters(model: nn.Module) -> Iterator[None]:
    """Inside the ``with`` block the model is its base; nests, and ends on exceptions too."""
    before = [(module, module.enabled) for module in lora_modules(model).values()]
    try:
        for module, _ in before:
            module.enabled = False
        yield
    finally:
        for module, enabled in before:
            module.enabled = enabled
