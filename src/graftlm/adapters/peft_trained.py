"""What trains beside the low-rank adapters, as PEFT's files name it.

    modules_to_save            <module>.<parameter>
    trainable_token_indices    <module>.token_adapter.trainable_tokens_delta
    bias                       <module>.bias, of an adapted layer <module>.base_layer.bias
    lora_bias                  <module>.lora_B.bias

PEFT compares an entry of `modules_to_save` with the end of a name, wherever a part of the name
begins. So whole names are written, and a file is refused where one would also fit another module.
A longer vocabulary shows in the shapes: PEFT writes the whole table then, even if it is frozen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graftlm.adapters.adapted import base_modules
from graftlm.adapters.lora_bias import OWN_BIAS, UPDATE_BIAS
from graftlm.adapters.trained_parts import Ends, TrainedPart, ends_of, parts_of
from graftlm.config import LoRAConfig
from graftlm.errors import ArtifactError

if TYPE_CHECKING:
    from graftlm.adapters.peft_config import AdapterConfig

__all__ = [
    "States",
    "bias_shapes",
    "of_trained_part",
    "trained_entries",
    "trained_in_file",
    "wanted_rows",
    "whole_in_peft",
    "with_biases",
]

States = dict[str, dict[str, Tensor]]
"""By module, by the end of the key."""
ROWS = "token_adapter.trainable_tokens_delta"
_LORA_BIAS = re.compile(r"(?P<module>.+)\.lora_B(\.[^.]+)?\.bias")
_OWN_BIAS = re.compile(r"(?P<module>.+?)(\.base_layer)?\.bias")
_TABLE = re.compile(r"(?P<module>.+?)(\.base_layer)?\.weight")


def whole_in_peft(names: Iterable[str], entries: Iterable[str]) -> list[str]:
    """The modules that PEFT trains whole: those whose name ends in an entry, as text."""
    ends = tuple(entries)
    return [name for name in names if name.endswith(ends)] if ends else []


def trained_entries(model: nn.Module, settings: LoRAConfig) -> dict[str, Any]:
    """The entries of adapter_config.json, with whole names.

    Raises:
        ArtifactError: PEFT would take an entry for another module as well.
    """
    every, ends = list(base_modules(model)), ends_of(model)
    entries: dict[str, Any] = {"bias": settings.bias}
    whole = list(settings.modules_to_save)
    tied = ends.tied and settings.ensure_weight_tying and ends.table in whole
    if tied and (ties := [name for name in (ends.table, ends.head) if _ties([name])]):
        left_out = {ends.table, ends.head} - {ties[0]}
        whole = [name for name in whole if name not in left_out]
        entries["ensure_weight_tying"] = True
    rows = settings.trainable_token_indices
    by_module = {ends.table: rows, ends.head: rows} if isinstance(rows, tuple) else rows
    lists = {name: list(own) for name, own in by_module.items() if own and name}
    if ends.tied and ends.table in lists:
        lists.pop(ends.head, None)  # PEFT ties the head itself
    for entry in (*whole, *lists):
        if odd := [name for name in whole_in_peft(every, [entry]) if name != entry]:
            raise ArtifactError(
                f"PEFT would read {entry!r} in adapter_config.json as {odd[0]} too, because the "
                "name of that module ends in it: train both, or neither"
            )
    if whole:
        entries["modules_to_save"] = whole
    if lists:
        only_table = list(lists) == [ends.table]
        entries["trainable_token_indices"] = lists[ends.table] if only_table else lists
    if settings.lora_bias:
        entries["lora_bias"] = True
    return entries


def with_biases(states: States, others: dict[str, Tensor], config: AdapterConfig) -> None:
    """Move the biases of adapted layers from ``others`` to ``states``, in place."""
    for key in list(others):
        for wanted, pattern, end in (
            (config.lora_bias, _LORA_BIAS, UPDATE_BIAS),
            (config.bias != "none", _OWN_BIAS, OWN_BIAS),
        ):
            match = pattern.fullmatch(key) if wanted else None
            if match and match["module"] in states:
                states[match["module"]][end] = others.pop(key)
                break


def bias_shapes(config: AdapterConfig, module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of the biases of an adapted layer, by the end of the key."""
    out = getattr(module, "out_features", getattr(module, "nf", 0))
    shapes: dict[str, tuple[int, ...]] = {}
    if config.bias != "none" and getattr(module, "bias", None) is not None:
        shapes[OWN_BIAS] = (out,)
    if config.lora_bias:
        shapes[UPDATE_BIAS] = (out,)
    return shapes


def wanted_rows(model: nn.Module, config: AdapterConfig, others: Mapping[str, Tensor]) -> int:
    """The rows of the table that the files need; 0 if they do not tell."""
    rows = config.trainable_token_indices
    named = [rows] if isinstance(rows, list) else list(rows.values())
    most = max((index + 1 for own in named for index in own), default=0)
    ends = ends_of(model)
    for key, tensor in others.items():
        match = _TABLE.fullmatch(key)
        if match and match["module"] in (ends.table, ends.head) and tensor.ndim == 2:
            most = max(most, len(tensor))
    return most


def trained_in_file(
    model: nn.Module,
    config: AdapterConfig,
    others: dict[str, Tensor],
    adapted: set[str],
    rows_before: int,
) -> tuple[list[TrainedPart], States, list[str]]:
    """The trained parts of a file, their tensors (taken out of ``others``), and what is wrong.

    Args:
        model: the model, its table as long as the file needs.
        config: the adapter_config.json.
        others: the tensors that belong to no low-rank adapter, by key without PEFT's prefix.
        adapted: the modules with a low-rank adapter.
        rows_before: the rows of the table before it was made longer.
    """
    modules, ends = base_modules(model), ends_of(model)
    whole = whole_in_peft(modules, config.modules_to_save)
    tokens = _tokens(config, modules, ends)
    _add_new_rows(tokens, others, adapted | {*whole}, ends, rows_before)
    # PEFT renames an entry `lm_head` to the table when it saves; the tensors still tell.
    both = f"{ends.head}.weight" in others and ends.table in whole
    parts, problems = parts_of(
        *(model, whole, config.ensure_weight_tying and (both or _ties(config.modules_to_save))),
        *(tokens, config.bias == "all", adapted),
    )
    states: States = {}
    for part in parts:
        states[part.name] = {}
        for end, shape in _shapes(part).items():
            key = f"{part.name}.{end}"
            tensor = others.pop(key, None)
            if tensor is None and not part.leader:
                problems.append(f"missing: {key}")
            elif tensor is None:
                continue
            elif tuple(tensor.shape) != shape:
                found, wanted = list(tensor.shape), list(shape)
                problems.append(f"{key} has shape {found}, expected {wanted}")
            elif not bool(tensor.isfinite().all()):
                problems.append(f"{key} holds NaN or infinite numbers")
            else:
                states[part.name][end] = tensor
    return parts, states, problems


def _ties(entries: Iterable[str]) -> bool:
    """Whether PEFT ties table and head for these entries: it knows the two by these names only.

    Where neither has one, both are written, as two modules of the same values.
    """
    return any(entry.rpartition(".")[2] in ("embed_tokens", "lm_head") for entry in entries)


def _tokens(
    config: AdapterConfig, modules: Mapping[str, nn.Module], ends: Ends
) -> dict[str, tuple[int, ...]]:
    rows = config.trainable_token_indices
    if isinstance(rows, list):
        return {ends.table: tuple(rows)} if rows and ends.table else {}
    return {
        name: tuple(own) for entry, own in rows.items() for name in whole_in_peft(modules, [entry])
    }


def _add_new_rows(
    tokens: dict[str, tuple[int, ...]],
    others: dict[str, Tensor],
    busy: set[str],
    ends: Ends,
    rows_before: int,
) -> None:
    """Let new rows that the file holds in a copy of a frozen table count as trained ones.

    No other copy of the base has them, so they belong to the adapter. The other rows stay in
    ``others``, where they are compared with the model's own.
    """
    for name in (ends.table, ends.head):
        if not name or name in busy:
            continue
        key = next((k for k in (f"{name}.weight", f"{name}.base_layer.weight") if k in others), "")
        if not key or len(others[key]) <= rows_before:
            continue
        if name == ends.head and ends.tied:  # its new rows are the table's
            others[key] = others[key][:rows_before]
            continue
        known = tokens.get(name, ())
        new = tuple(i for i in range(rows_before, len(others[key])) if i not in known)
        if not new:
            continue
        rows = others[key][list(new)]
        own = others.get(f"{name}.{ROWS}")
        others[f"{name}.{ROWS}"] = rows if own is None else torch.cat((own, rows.to(own.dtype)))
        others[key] = others[key][:rows_before]
        tokens[name] = (*known, *new)


def _shapes(part: TrainedPart) -> dict[str, tuple[int, ...]]:
    """The tensors of a part in the file, by the end of the key."""
    if part.indices:
        width = part.module.weight.shape[1]  # type: ignore[index]
        return {} if part.leader else {ROWS: (len(part.indices), int(width))}
    return {
        key: tuple(parameter.shape)
        for key, parameter in part.module.named_parameters()
        if not part.only or key in part.only
    }


def of_trained_part(key: str, config: AdapterConfig) -> bool:
    """Whether a tensor of the file belongs to what trains beside the low-rank adapters.

    A copy of a frozen table does not; with more rows than its base it does, but is not told apart
    here.
    """
    if key.endswith((f".{ROWS}", f".{UPDATE_BIAS}")):
        return True
    module, _, part = key.rpartition(".")
    if part == "bias" and config.bias != "none":
        return True
    tops = [".".join(module.split(".")[:count]) for count in range(1, module.count(".") + 2)]
    return bool(whole_in_peft(tops, config.modules_to_save))
