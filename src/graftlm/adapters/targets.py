"""From `LoRAConfig` to the list of modules to adapt.

Names are matched as in PEFT, so that settings select the same modules in both. An entry of a list
matches a module's full name, or its end after a dot. A single string is a regular expression that
must match the full name. `all-linear` is every linear layer except the output head. Entries of
`target_parameters` match the fused experts of a layer, and the weight of its router, by the name of
the parameter; nothing else matches those. Keys of `rank_pattern` and `alpha_pattern` are regular
expressions for the end of a name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from torch import nn

from graftlm._compat.peft_mamba import refused_by_peft
from graftlm.adapters.adapted import (
    adaptable_modules,
    adapter_names,
    base_modules,
    output_head,
)
from graftlm.adapters.adapter import DEFAULT, adapter_class, adapter_classes
from graftlm.adapters.layer_index import in_layers
from graftlm.adapters.layers import linear_shape
from graftlm.adapters.lora_router import by_parameter
from graftlm.adapters.names import fault, matches_end, matching, pattern_value
from graftlm.adapters.quick_patterns import endless
from graftlm.adapters.trained_parts import in_whole_modules
from graftlm.config import LoRAConfig, shown
from graftlm.errors import TargetError, near_matches
from graftlm.frozen.experts import ExpertStack

__all__ = [
    "Target",
    "adaptable",
    "all_linear",
    "left_out",
    "select",
]

ALL_LINEAR = "all-linear"


@dataclasses.dataclass(frozen=True)
class Target:
    """One module to adapt, with its settings."""

    name: str
    module: nn.Module
    rank: int
    alpha: float


def all_linear(model: nn.Module) -> list[str]:
    """Names of all linear layers except the output head."""
    head = output_head(model)
    return [
        name
        for name, module in base_modules(model).items()
        if module is not head and linear_shape(module) is not None
    ]


def select(model: nn.Module, config: LoRAConfig, name: str = DEFAULT) -> list[Target]:
    """The modules that ``config`` asks for, in the model's order.

    Args:
        model: the model to adapt.
        config: the request.
        name: the name of the new adapter.

    Raises:
        ConfigError: there is no such variant of adapters.
        TargetError: the request is wrong; the message lists all problems.
    """
    adapter_classes(config.variant)
    if name in adapter_names(model):
        raise TargetError(
            f"the model already has adapters called {name!r}. Merge or remove them first "
            "(graftlm.adapters.merge_adapters, graftlm.adapters.remove), or give the new ones "
            "another name."
        )
    modules = adaptable_modules(model)
    problems = _invalid_expressions(config)
    if not problems and (slow := endless(_expressions(config).values(), modules)) is not None:
        problems = [f"{shown(slow)!r} takes for ever to match: nest no repetitions"]
    if problems:
        raise TargetError("\n".join(problems))
    named = by_parameter(modules)
    others = {name: m for name, m in modules.items() if name not in named.values()}
    if every := isinstance(config.targets, str) and config.targets.lower() == ALL_LINEAR:
        names = all_linear(model)
    else:
        names = matching(others, config.targets)
        problems += _unmatched(config, others)
    said = "" if named else "; the model has none of a layout that can be adapted"
    problems += [
        f"target_parameters: {entry!r} matches no fused experts and no router"
        f"{said or _hint(entry, named)}"
        for entry in config.target_parameters
        if not matching(named, [entry])
    ]
    wanted = {*names, *(named[entry] for entry in matching(named, config.target_parameters))}
    names = [name for name in modules if name in wanted]
    whole = in_whole_modules(names, matching(base_modules(model), config.modules_to_save))
    if whole and len(whole) == len(names):
        problems.append("every target is in modules_to_save, so none is left for an adapter")
    names = [name for name in names if name not in whole]
    if config.layers and names:
        empty = [
            index
            for index in config.layers
            if not any(in_layers(name, [index], config.layers_pattern) for name in names)
        ]
        if empty:
            problems.append(f"layers {empty}: no target stands in these layers")
        names = [n for n in names if in_layers(n, config.layers, config.layers_pattern)]
    elif config.layers_pattern:
        problems.append("layers_pattern has no effect without layers: name their indices")
    excluded = set(matching(names, config.exclude))
    unasked = left_out(model, set(names) & others.keys(), config) if every else {}
    if len(unasked) < len(names):  # else every layer is refused below, with its size
        excluded |= unasked.keys()
    problems += [
        f"exclude {entry!r} matches none of the targets{_hint(entry, names)}"
        for entry in config.exclude
        if not matching(names, [entry])
    ]
    found = [
        Target(
            name,
            modules[name],
            pattern_value(config.rank_pattern, name, config.rank),
            pattern_value(config.alpha_pattern, name, config.alpha),
        )
        for name in names
        if name not in excluded
    ]
    problems += _unfit(found, config.variant)
    refused = refused_by_peft(getattr(model, "config", None), [target.name for target in found])
    if refused:
        problems.append(
            f"PEFT refuses adapters on {_listed(refused)}: on a GPU the kernels of this model read "
            "the weight themselves, and the adapter has no effect. Leave these targets out."
        )
    if found:
        problems += _idle_patterns(config, [target.name for target in found])
    elif not problems:
        problems.append(
            "the model has no linear layer to adapt" if not names else "exclude removes all targets"
        )
    if problems:
        raise TargetError("\n".join(problems))
    return found


def left_out(model: nn.Module, names: Iterable[str], config: LoRAConfig) -> dict[str, str]:
    """The layers that ``all-linear`` leaves out, and the reason for each; no one has named them.

    Those with a side below their rank, such as the one-row gate of a mixture of experts: an update
    of full rank costs less there. And those that PEFT refuses.
    """
    modules = base_modules(model)
    names = [name for name in modules if name in set(names)]
    small = {
        name: f"a side of {min(size)} is below the rank"
        for name in names
        if (size := linear_shape(modules[name])) is not None
        and pattern_value(config.rank_pattern, name, config.rank) > min(size)
    }
    refused = refused_by_peft(getattr(model, "config", None), names)
    return small | dict.fromkeys(refused, "PEFT refuses an adapter there")


def adaptable(module: nn.Module, variant: str = "lora") -> bool:
    """Whether ``variant`` can adapt the module."""
    return adapter_class(variant, module) is not None


def _expressions(config: LoRAConfig) -> dict[str, str]:
    """The regular expressions, by what they are."""
    found = {f"rank_pattern key {key!r}": key for key in config.rank_pattern}
    found |= {f"alpha_pattern key {key!r}": key for key in config.alpha_pattern}
    if isinstance(config.targets, str):
        found[f"targets {config.targets!r}"] = config.targets
    return found


def _invalid_expressions(config: LoRAConfig) -> list[str]:
    return [
        f"{what} is not a valid regular expression: {why}"
        for what, expression in _expressions(config).items()
        if (why := fault(expression))
    ]


def _unmatched(config: LoRAConfig, modules: Mapping[str, nn.Module]) -> list[str]:
    targets = config.targets
    names = [name for name, module in modules.items() if adaptable(module, config.variant)]
    if not isinstance(targets, str):
        if not targets and not config.target_parameters:
            return ["targets is empty; name the modules to adapt, or use 'all-linear'"]
        return [
            f"target {entry!r} matches no module{_hint(entry, names)}"
            for entry in targets
            if not matching(modules, [entry])
        ]
    if matching(modules, targets):
        return []
    message = f"targets {targets!r} matches no module as a regular expression on full names"
    if matching(modules, [targets]):
        return [f"{message}; to match the end of names, pass a list: [{targets!r}]"]
    return [message + _hint(targets, names)]


def _hint(word: str, names: Iterable[str]) -> str:
    """Similar names; if ``word`` has no dot, only the last parts of names are compared."""
    candidates = list(dict.fromkeys(n if "." in word else n.rpartition(".")[2] for n in names))
    return near_matches(word, candidates) or f"; the model has {', '.join(candidates[:12])}"


def _unfit(targets: Iterable[Target], variant: str) -> list[str]:
    unfit, small = [], []
    for target in targets:
        if not adaptable(target.module, variant):
            unfit.append(f"{target.name} ({type(target.module).__name__})")
            continue
        size = _size(target.module)
        if target.rank > min(size):
            small.append(f"{target.name} [{size[0]}, {size[1]}] with rank {target.rank}")
    problems = []
    if unfit:
        kinds = " or a ".join(cls.beside for cls in adapter_classes(variant))
        by = "" if variant == "lora" else f" by lora.variant={variant}"
        problems.append(
            f"only a {kinds} can be adapted{by} (one held in 8 bits by model.embeddings=int8 "
            f"can't), not {_listed(unfit)}. "
            "Make the targets more precise, or exclude these."
        )
    if small:
        problems.append(
            f"the rank is larger than the smaller side of {_listed(small)}. "
            "Lower the rank, give these another one by rank_pattern, or exclude them."
        )
    return problems


def _size(module: nn.Module) -> tuple[int, ...]:
    """The two sides of the module's matrix, or of each of its matrices."""
    if isinstance(module, ExpertStack):
        return module.shape[1:]
    return linear_shape(module) or tuple(module.weight.shape)  # type: ignore[arg-type]


def _listed(items: list[str], limit: int = 6) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def _idle_patterns(config: LoRAConfig, names: list[str]) -> list[str]:
    return [
        f"{setting} key {key!r} matches none of the adapted modules{_hint(key, names)}"
        for setting, patterns in (
            ("rank_pattern", config.rank_pattern),
            ("alpha_pattern", config.alpha_pattern),
        )
        for key in patterns
        if not any(matches_end(key, name) for name in names)
    ]
