"""The adapters of a model, and the names of its modules without them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from graftlm._compat.compiled import without_compile_prefix
from graftlm.adapters.adapter import Adapter
from graftlm.adapters.several import SeveralAdapters, adapters_at
from graftlm.errors import TargetError
from graftlm.frozen.experts import DenseExperts
from graftlm.models.experts import expert_weights

__all__ = [
    "adaptable_modules",
    "adapted_modules",
    "adapter_names",
    "base_modules",
    "lora_modules",
    "lora_parameters",
    "output_head",
    "token_table",
]


def adapted_modules(model: nn.Module) -> dict[str, Adapter | SeveralAdapters]:
    """The adapter of each adapted module, by its name in the base model, in order."""
    return {
        name: there
        for name, there, _ in _walk(model)
        if isinstance(there, Adapter | SeveralAdapters)
    }


def base_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules under their names without adapters, in the model's order."""
    return {name: base for name, _, base in _walk(model) if name}


def adaptable_modules(model: nn.Module) -> dict[str, nn.Module]:
    """`base_modules`, and the fused experts of plain models under the names of their parameters."""
    fused: dict[nn.Module, dict[str, nn.Module]] = {}
    for name, weight in expert_weights(model).items():
        stack = DenseExperts(getattr(weight.module, weight.leaf), weight.transposed)
        fused.setdefault(weight.module, {})[without_compile_prefix(name)] = stack
    modules = {}
    for name, module in base_modules(model).items():
        modules[name] = module
        modules |= fused.get(module, {})
    return modules


def _walk(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """``(name, module, its base)``; modules inside an adapter are skipped."""
    inside = None
    for name, there in model.named_modules():
        if inside is not None and name.startswith(inside):
            continue
        base = there
        if isinstance(there, Adapter | SeveralAdapters):
            base, inside = there.base, f"{name}." if name else ""
        yield without_compile_prefix(name), there, base


def adapter_names(model: nn.Module) -> list[str]:
    """The names of the model's adapters, in the order they were added."""
    every = (a.name for there in adapted_modules(model).values() for a in adapters_at(there))
    return list(dict.fromkeys(every))


def lora_modules(model: nn.Module, adapter: str | None = None) -> dict[str, Adapter]:
    """The modules of one adapter by their name in the base model, in the model's order.

    Args:
        model: any model; one without adapters gives an empty dictionary.
        adapter: its name; may be omitted if the model has one adapter, or if one is active.

    Raises:
        TargetError: there is no adapter of that name, or the name is needed to choose one.
    """
    there = adapted_modules(model)
    every = [(name, a) for name, module in there.items() for a in adapters_at(module)]
    names = list(dict.fromkeys(a.name for _, a in every))
    if adapter is None and len(names) > 1:
        on = list(dict.fromkeys(a.name for _, a in every if a.enabled))
        if len(on) != 1:
            raise TargetError(f"the model has the adapters {', '.join(names)}: say which one")
        adapter = on[0]
    if adapter is not None and adapter not in names:
        raise TargetError(f"the model has no adapter {adapter!r}; it has {names or 'none'}")
    return {name: a for name, a in every if adapter in (None, a.name)}


def lora_parameters(
    model: nn.Module, adapter: str | None = None
) -> Iterator[tuple[str, nn.Parameter]]:
    """``(name, parameter)`` of every adapter parameter, in the model's order.

    Args:
        model: any model.
        adapter: only the parameters of this adapter; by default those of all.
    """
    for name, there in adapted_modules(model).items():
        for index, module in enumerate(adapters_at(there)):
            if adapter in (None, module.name):
                place = name if module is there else f"{name}.adapters.{index}"
                for attribute, parameter in module.adapter_parameters().items():
                    yield f"{place}.{attribute}", parameter


def output_head(model: nn.Module) -> nn.Module | None:
    """The layer that produces the logits (not its adapter), if the model names it."""
    head = _asked(model, "get_output_embeddings")
    return head.base if isinstance(head, Adapter | SeveralAdapters) else head


def token_table(model: nn.Module) -> nn.Module | None:
    """The module that maps token ids to vectors, with its adapter, if the model names it."""
    return _asked(model, "get_input_embeddings")


def _asked(model: nn.Module, question: str) -> nn.Module | None:
    try:
        answer = getattr(model, question)()
    except (AttributeError, NotImplementedError):
        return None
    return answer if isinstance(answer, nn.Module) else None
