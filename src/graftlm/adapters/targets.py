"""From `LoRAConfig` to the list of modules to adapt.

Names are matched as PEFT matches them, so that an adapter means the same modules in both: an entry
of a list matches a module's full name or its end after a dot; one string is a regular expression
that must match the full name; `all-linear` is every linear layer except the output head. Keys of
`rank_pattern` and `alpha_pattern` are regular expressions for the end of a name.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from torch import nn

from graftlm.adapters.lora_embedding import LoRAEmbedding
from graftlm.adapters.lora_linear import LoRALinear, linear_shape
from graftlm.config import LoRAConfig
from graftlm.errors import TargetError, near_matches
from graftlm.frozen.int8_rows import Int8Embedding, Int8Output

__all__ = [
    "Target",
    "adaptable",
    "all_linear",
    "base_modules",
    "endings",
    "fault",
    "lora_modules",
    "matching",
    "output_head",
    "pattern_value",
    "select",
]

ALL_LINEAR = "all-linear"
ValueT = TypeVar("ValueT")


@dataclasses.dataclass(frozen=True)
class Target:
    """One module to adapt, and how."""

    name: str
    module: nn.Module
    rank: int
    alpha: float


def lora_modules(model: nn.Module) -> dict[str, LoRALinear | LoRAEmbedding]:
    """The adapted modules by their name in the base model, in the model's order."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (LoRALinear, LoRAEmbedding))
    }


def base_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules as they are named without adapters, in the model's order."""
    adapted = lora_modules(model)
    return {
        name: adapted[name].base if name in adapted else module
        for name, module in model.named_modules()
        if name and name.rpartition(".")[0] not in adapted
    }


def output_head(model: nn.Module) -> nn.Module | None:
    """The layer that produces the logits (not its adapter), if the model says which one it is."""
    try:
        head = model.get_output_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    if isinstance(head, (LoRALinear, LoRAEmbedding)):
        head = head.base
    return head if isinstance(head, nn.Module) else None


def all_linear(model: nn.Module) -> list[str]:
    """Names of all linear layers except the output head."""
    head = output_head(model)
    return [
        name
        for name, module in base_modules(model).items()
        if module is not head and linear_shape(module) is not None
    ]


def matching(names: Iterable[str], targets: str | Iterable[str]) -> list[str]:
    """The names that a regular expression matches in full, or that a list names by their end."""
    if isinstance(targets, str):
        pattern = re.compile(targets)
        return [name for name in names if pattern.fullmatch(name)]
    wanted = set(targets)
    return [name for name in names if any(ending in wanted for ending in endings(name))]


def pattern_value(patterns: Mapping[str, ValueT], name: str, default: ValueT) -> ValueT:
    """The value of the first key that matches the end of ``name``, else ``default``."""
    return next((value for key, value in patterns.items() if _matches_end(key, name)), default)


def select(model: nn.Module, config: LoRAConfig) -> list[Target]:
    """The modules that ``config`` asks for, in the model's order.

    Raises:
        TargetError: listing everything that is wrong with the request.
    """
    if lora_modules(model):
        raise TargetError(
            "the model already has adapters. Merge or remove them first "
            "(graftlm.adapters.merge_adapters, graftlm.adapters.remove)."
        )
    problems = _invalid_expressions(config)
    if problems:
        raise TargetError("\n".join(problems))
    modules = base_modules(model)
    if isinstance(config.targets, str) and config.targets.lower() == ALL_LINEAR:
        names = all_linear(model)
    else:
        names = matching(modules, config.targets)
        problems += _unmatched(config.targets, modules)
    excluded = set(matching(names, config.exclude))
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
    problems += _unfit(found)
    if found:
        problems += _idle_patterns(config, [target.name for target in found])
    elif not problems:
        problems.append(
            "the model has no linear layer to adapt" if not names else "exclude removes all targets"
        )
    if problems:
        raise TargetError("\n".join(problems))
    return found


def adaptable(module: nn.Module) -> bool:
    """Whether an adapter can stand beside the module: linear layers and token tables."""
    if isinstance(module, Int8Embedding | Int8Output):
        return False  # their 16-bit weights are gone: nothing to merge into
    if isinstance(module, nn.Embedding):  # a table of positions takes more than the ids
        return len(inspect.signature(type(module).forward).parameters) == 2
    return linear_shape(module) is not None


def endings(name: str) -> Iterator[str]:
    """``a.b.c`` → ``a.b.c``, ``b.c``, ``c``."""
    yield name
    while "." in name:
        name = name.partition(".")[2]
        yield name


def _matches_end(key: str, name: str) -> bool:
    return re.match(rf"(.*\.)?({key})$", name) is not None


def _invalid_expressions(config: LoRAConfig) -> list[str]:
    expressions = [
        *((f"rank_pattern key {key!r}", key) for key in config.rank_pattern),
        *((f"alpha_pattern key {key!r}", key) for key in config.alpha_pattern),
    ]
    if isinstance(config.targets, str):
        expressions.append((f"targets {config.targets!r}", config.targets))
    return [
        f"{what} is not a valid regular expression: {why}"
        for what, expression in expressions
        if (why := fault(expression))
    ]


def fault(expression: str) -> str:
    """Why ``expression`` is not a valid regular expression; empty when it is."""
    try:
        re.compile(expression)
    except re.error as error:
        return str(error)
    return ""


def _unmatched(targets: str | tuple[str, ...], modules: Mapping[str, nn.Module]) -> list[str]:
    names = [name for name, module in modules.items() if adaptable(module)]
    if not isinstance(targets, str):
        if not targets:
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
    """Near matches among the last parts of names if ``word`` has no dot, else among the names."""
    candidates = list(dict.fromkeys(n if "." in word else n.rpartition(".")[2] for n in names))
    return near_matches(word, candidates) or f"; the model has {', '.join(candidates[:12])}"


def _unfit(targets: Iterable[Target]) -> list[str]:
    unfit, small = [], []
    for target in targets:
        if not adaptable(target.module):
            unfit.append(f"{target.name} ({type(target.module).__name__})")
            continue
        size = linear_shape(target.module) or tuple(target.module.weight.shape)  # type: ignore[arg-type]
        if target.rank > min(size):
            small.append(f"{target.name} [{size[0]}, {size[1]}] with rank {target.rank}")
    problems = []
    if unfit:
        problems.append(
            "only linear layers and token embeddings can be adapted (these not under "
            f"model.embeddings=int8), not {_listed(unfit)}. "
            "Make the targets more precise, or exclude these."
        )
    if small:
        problems.append(
            f"the rank is larger than the smaller side of {_listed(small)}. "
            "Lower the rank, give these another one by rank_pattern, or exclude them."
        )
    return problems


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
        if not any(_matches_end(key, name) for name in names)
    ]
