"""Derives, from an adapted model, the settings that adapt another model in the same way."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from torch import nn

from graftlm.adapters.adapted import adaptable_modules, lora_modules
from graftlm.adapters.lora_bias import WithBias
from graftlm.adapters.lora_router import by_parameter
from graftlm.adapters.merge_aware import merge_format
from graftlm.adapters.names import endings, matching, pattern_value
from graftlm.adapters.trained_parts import ends_of, trained_settings
from graftlm.config import LoRAConfig

__all__ = ["lora_config"]

ValueT = TypeVar("ValueT", int, float)


def lora_config(
    model: nn.Module, adapter: str | None = None, *, as_saved: bool = False
) -> LoRAConfig:
    """The shortest settings of one adapter of ``model``.

    ``add_lora(base, lora_config(model))`` makes adapters of the same names, ranks and scalings.
    PEFT does the same when it reads these settings.

    Args:
        model: a model with adapters.
        adapter: its name; may be omitted if the model has one adapter, or if one is active.
        as_saved: with the ranks of PEFT's file, whose update includes a start that is subtracted.
    """
    every_part = lora_modules(model, adapter)
    adapted = {name: module for name, module in every_part.items() if module.rank}
    if not adapted:
        raise ValueError("the model has no adapters")
    every = adaptable_modules(model)
    named = by_parameter(every)
    layers = [name for name in adapted if name not in named.values()]
    chosen = [entry for entry, name in named.items() if name in adapted]
    weights = {*named, *(f"{name}.weight" for name in every)} - set(chosen)
    ranks = {name: m.saved_rank if as_saved else m.rank for name, m in adapted.items()}
    alphas = {name: float(m.saved_alpha if as_saved else m.alpha) for name, m in adapted.items()}
    rank, alpha = _most_common(ranks), _most_common(alphas)
    first = next(iter(adapted.values()))
    return LoRAConfig(
        rank=rank,
        alpha=alpha,
        dropout=max(module.dropout for module in adapted.values()),
        targets=_targets(layers, (name for name in every if name not in named.values())),
        target_parameters=_of_parameters(chosen, weights),
        use_rslora=first.use_rslora,
        rank_pattern=_pattern(ranks, rank),
        alpha_pattern=_pattern(alphas, alpha),
        variant=first.variant,
        merge_aware=merge_format(model),
        init="default" if as_saved else first.init,
        **_trained(model, every_part),
        freeze_a=any("lora_A" in module.kept for module in adapted.values()),
    )


def _trained(model: nn.Module, parts: Mapping[str, nn.Module]) -> dict[str, Any]:
    """The settings of what trains beside the low-rank adapters, by the names of whole modules."""
    whole, rows, biases = trained_settings(model, parts)
    ends = ends_of(model)
    both = ends.head and set(rows) == {ends.table, ends.head}
    follows = any(getattr(parts[name], "follows", False) for name in whole)
    same = bool(both) and rows[ends.table] == rows[ends.head]
    own = any(isinstance(m, WithBias) and m.trained_bias is not None for m in parts.values())
    return {
        "modules_to_save": tuple(whole),
        "ensure_weight_tying": not ends.tied or follows or not {ends.table, ends.head} & {*whole},
        "trainable_token_indices": rows[ends.table] if same else rows or (),
        "bias": "all" if biases else "lora_only" if own else "none",
        "lora_bias": any(getattr(m, "lora_bias", None) is not None for m in parts.values()),
    }


def _most_common(values: Mapping[str, ValueT]) -> ValueT:
    return collections.Counter(values.values()).most_common(1)[0][0]


def _targets(chosen: list[str], names: Iterable[str]) -> str | tuple[str, ...]:
    """Endings that match exactly ``chosen``; a regular expression if there are none."""
    every = list(names)
    short = _endings_of(chosen, [name for name in every if name not in set(chosen)])
    if matching(every, short) == [name for name in every if name in set(chosen)]:
        return tuple(short)
    return "|".join(re.escape(name) for name in chosen)


def _of_parameters(chosen: Iterable[str], others: Iterable[str]) -> tuple[str, ...]:
    """Endings that match exactly ``chosen``; with the name of the module, so that one sees what."""
    taken = {ending for name in others for ending in endings(name)}
    shortest = (
        next((e for e in reversed(list(endings(name))) if "." in e and e not in taken), name)
        for name in chosen
    )
    return tuple(dict.fromkeys(shortest))


def _pattern(values: Mapping[str, ValueT], default: ValueT) -> dict[str, ValueT]:
    """Keys that give each name its value in any order of reading."""
    pattern: dict[str, ValueT] = {}
    for value in dict.fromkeys(values.values()):
        if value != default:
            others = [name for name, its in values.items() if its != value]
            for key in _endings_of([n for n, its in values.items() if its == value], others):
                pattern[f"^{key}" if any(key in endings(name) for name in others) else key] = value
    assert all(pattern_value(pattern, name, default) == value for name, value in values.items())
    return pattern


def _endings_of(chosen: Iterable[str], others: Iterable[str]) -> list[str]:
    """The shortest unique ending, or the full name, of each chosen name, without duplicates."""
    taken = {ending for name in others for ending in endings(name)}
    shortest = (
        next((e for e in reversed(list(endings(name))) if e not in taken), name) for name in chosen
    )
    return list(dict.fromkeys(shortest))
