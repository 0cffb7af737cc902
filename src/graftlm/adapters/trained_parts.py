"""Which parts of the base train beside the low-rank adapters, and attaches them.

    modules_to_save            whole modules               `trained_module.py`
    trainable_token_indices    rows of table and head      `trained_tokens.py`
    bias                       biases of other modules     `trained_module.py`; of adapted linear
                                                           layers `lora_bias.py`

Where table and head share one weight, the head follows the table: one parameter trains.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from graftlm.adapters.adapted import adapted_modules, base_modules, output_head, token_table
from graftlm.adapters.adapter import Adapter
from graftlm.adapters.names import matching
from graftlm.adapters.report import tied_head
from graftlm.adapters.several import SeveralAdapters, put_adapter
from graftlm.adapters.trained_module import TrainedModule, untrainable
from graftlm.adapters.trained_tokens import TrainedTokens
from graftlm.config import LoRAConfig
from graftlm.errors import TargetError, near_matches

__all__ = [
    "Ends",
    "TrainedPart",
    "attach_trained",
    "ends_of",
    "in_whole_modules",
    "longest",
    "parts_of",
    "select_trained",
    "trained_settings",
]


@dataclasses.dataclass(frozen=True)
class TrainedPart:
    """A part of the base that trains.

    Attributes:
        name: of the module.
        module: the module.
        indices: the rows that train; empty: all.
        only: the parameters that train; empty: all.
        leader: the module whose parameter this one shares; empty: none.
    """

    name: str
    module: nn.Module
    indices: tuple[int, ...] = ()
    only: tuple[str, ...] = ()
    leader: str = ""


@dataclasses.dataclass(frozen=True)
class Ends:
    """The names of the embedding table and of the output head, and whether they share a weight."""

    table: str = ""
    head: str = ""
    tied: bool = False


def ends_of(model: nn.Module) -> Ends:
    """The two ends of ``model``; an empty name where the model has none."""
    table, head = token_table(model), output_head(model)
    table = table.base if isinstance(table, Adapter | SeveralAdapters) else table
    names = {id(module): name for name, module in base_modules(model).items()}
    return Ends(names.get(id(table), ""), names.get(id(head), ""), tied_head(model))


def in_whole_modules(names: Iterable[str], whole: Iterable[str]) -> set[str]:
    """Those of ``names`` that are one of the modules ``whole``, or inside one."""
    tops = tuple(whole)
    inside = tuple(f"{name}." for name in tops)
    return {name for name in names if name in tops or name.startswith(inside)}


def select_trained(
    model: nn.Module, config: LoRAConfig, adapted: Iterable[str]
) -> tuple[list[TrainedPart], list[str]]:
    """The parts that ``config`` asks for, in the model's order, and what is wrong with the request.

    Args:
        model: the model, its table already long enough for every index.
        config: the request.
        adapted: the names of the layers that get an adapter.
    """
    every = base_modules(model)
    whole = matching(every, config.modules_to_save)
    problems = [
        f"modules_to_save: {entry!r} matches no module"
        f"{near_matches(entry, [name.rpartition('.')[2] for name in every])}"
        for entry in config.modules_to_save
        if not matching(every, [entry])
    ]
    ends, rows = ends_of(model), config.trainable_token_indices
    tokens: dict[str, tuple[int, ...]] = {}
    if isinstance(rows, tuple):
        if rows and not ends.table:
            problems.append("trainable_token_indices: the model names no embedding table")
        elif rows:
            tokens = {ends.table: rows} | ({ends.head: rows} if ends.head else {})
    else:
        for entry, indices in rows.items():
            named = matching(every, [entry])
            if not named:
                problems.append(f"trainable_token_indices: {entry!r} matches no module")
            tokens |= dict.fromkeys(named, indices)
    parts, more = parts_of(
        model, whole, config.ensure_weight_tying, tokens, config.bias == "all", set(adapted)
    )
    return parts, problems + more


def parts_of(
    model: nn.Module,
    whole: Sequence[str],
    tie: bool,
    tokens: Mapping[str, Sequence[int]],
    biases: bool,
    adapted: set[str],
) -> tuple[list[TrainedPart], list[str]]:
    """The parts, in the model's order, and what is wrong with them.

    Args:
        model: the model.
        whole: modules to train whole.
        tie: whether a tied table and head stay one if one of them trains whole.
        tokens: the trained rows by module.
        biases: whether every bias trains.
        adapted: the names of the layers that have an adapter of their own.
    """
    modules, ends = base_modules(model), ends_of(model)
    problems: list[str] = []
    wanted: dict[str, TrainedPart] = {}
    for name in whole:
        above = in_whole_modules([name], [other for other in whole if other != name])
        if not above:  # a module inside another one trains with it
            wanted[name] = TrainedPart(name, modules[name])
    if ends.tied and tie and {ends.table, ends.head} & wanted.keys():
        wanted[ends.table] = TrainedPart(ends.table, modules[ends.table])
        wanted[ends.head] = TrainedPart(ends.head, modules[ends.head], leader=ends.table)
    for name, indices in tokens.items():
        if in_whole_modules([name], wanted):
            problems.append(f"{name} is in modules_to_save, so its rows train already")
            continue
        wanted[name] = TrainedPart(name, modules[name], tuple(indices))
    if ends.tied and ends.table in tokens:
        if tuple(tokens.get(ends.head, tokens[ends.table])) != tuple(tokens[ends.table]):
            problems.append(
                f"trainable_token_indices: {ends.table} and {ends.head} are one weight, and other "
                "rows of each are named: name the same"
            )
        rows = tuple(tokens[ends.table])
        wanted[ends.head] = TrainedPart(ends.head, modules[ends.head], rows, leader=ends.table)
    elif ends.tied and ends.head in tokens:
        problems.append(
            f"trainable_token_indices: {ends.head} shares the weight of {ends.table}: name that"
        )
    problems += [problem for part in wanted.values() for problem in _problems(part, adapted)]
    if biases:
        busy = in_whole_modules(modules, wanted) | adapted
        for name, module in modules.items():
            if name not in busy and "bias" in dict(module.named_parameters(recurse=False)):
                wanted[name] = TrainedPart(name, module, only=("bias",))
    there = adapted_modules(model)
    problems += [
        f"{name} has an adapter of another name, and is more than one layer: train its parts"
        for name, part in wanted.items()
        if name in there and next(part.module.children(), None) is not None
    ]
    return [wanted[name] for name in modules if name in wanted], problems


def _problems(part: TrainedPart, adapted: set[str]) -> list[str]:
    if not part.indices:
        why = "it is adapted too: leave it out of the targets"
        why = why if part.name in adapted else untrainable(part.module) or ""
        return [f"modules_to_save: {part.name} cannot train whole: {why}"] if why else []
    said = f"trainable_token_indices: {part.name}"
    if part.name in adapted:
        return [f"{said} is adapted too: leave it out of the targets"]
    if not TrainedTokens.adapts(part.module):
        kind = type(part.module).__name__
        return [f"{said} ({kind}) is no table or head in 16 or 32 bits (model.embeddings=keep)"]
    size = len(part.module.weight)  # type: ignore[arg-type]
    problems = []
    if beyond := [index for index in part.indices if not 0 <= index < size]:
        problems.append(f"{said} has {size} rows, and {beyond[0]} is not one of them")
    if len(set(part.indices)) < len(part.indices):
        problems.append(f"{said}: an index is named twice")
    return problems


def attach_trained(model: nn.Module, parts: Iterable[TrainedPart], name: str) -> list[Adapter]:
    """Put the trained parts in place, without checking the request; returns them."""
    made: dict[str, TrainedModule | TrainedTokens] = {}
    for part in parts:
        leader = made.get(part.leader)
        if part.indices:
            rows = leader if isinstance(leader, TrainedTokens) else None
            made[part.name] = TrainedTokens(part.module, part.indices, name, rows)
        else:
            copy = leader if isinstance(leader, TrainedModule) else None
            made[part.name] = TrainedModule(part.module, part.only, name, copy)
        put_adapter(model, part.name, made[part.name])
    return list(made.values())


def longest(config: LoRAConfig) -> int:
    """The rows that the table needs for every index.

    Raises:
        TargetError: an index is negative.
    """
    rows = config.trainable_token_indices
    every = list(rows) if isinstance(rows, tuple) else [i for own in rows.values() for i in own]
    if min(every, default=0) < 0:
        raise TargetError(f"trainable_token_indices: {min(every)} is no token id")
    return max(every, default=-1) + 1


def trained_settings(
    model: nn.Module, parts: Mapping[str, nn.Module]
) -> tuple[list[str], dict[str, tuple[int, ...]], bool]:
    """The modules that train whole, the trained rows by module, and whether other biases train."""
    whole, rows, biases = [], {}, False
    for name, module in parts.items():
        if isinstance(module, TrainedTokens):
            rows[name] = module.indices
        elif isinstance(module, TrainedModule):
            biases |= module.partial
            if not module.partial:
                whole.append(name)
    return whole, rows, biases
