"""The report of `add_lora`: names and counts."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from graftlm.adapters.adapted import (
    adaptable_modules,
    adapted_modules,
    lora_modules,
    output_head,
    token_table,
)
from graftlm.adapters.adapter import Adapter
from graftlm.adapters.layers import linear_shape
from graftlm.adapters.several import SeveralAdapters, adapters_at
from graftlm.adapters.trained_module import TrainedModule
from graftlm.adapters.trained_tokens import TrainedTokens
from graftlm.frozen.embedding import FrozenEmbedding
from graftlm.frozen.experts import ExpertStack
from graftlm.frozen.modules import shared_weight, stored_weights
from graftlm.models.without_values import has_no_values

__all__ = ["LoRAReport", "ParameterCount", "count_parameters", "describe", "tied_head"]


@dataclasses.dataclass(frozen=True)
class LoRAReport:
    """The adapters of a model.

    Attributes:
        adapted: rank of each adapted module, by name.
        skipped: the reason for each weight matrix that is not adapted, by module name.
        trainable_parameters: the number of trainable parameters.
        frozen_parameters: the others; a tied weight counts once, a stored one by its elements.
        notes: remarks on tied weights, and on layers too small for the rank.
        trained: what trains of each module beside the adapters, by name.
    """

    adapted: dict[str, int]
    skipped: dict[str, str]
    trainable_parameters: int
    frozen_parameters: int
    notes: tuple[str, ...] = ()
    trained: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def total_parameters(self) -> int:
        """Trainable and frozen parameters together."""
        return self.trainable_parameters + self.frozen_parameters

    def __str__(self) -> str:
        adapted = _grouped((name, f"rank {rank}") for name, rank in self.adapted.items())
        lines = [
            f"{len(self.adapted)} modules adapted: {adapted}",
            f"{self.trainable_parameters:,} of {self.total_parameters:,} parameters train "
            f"({self.trainable_parameters / max(self.total_parameters, 1):.3%}), "
            f"{self.frozen_parameters:,} are frozen",
        ]
        if self.trained:
            lines.append(f"trained beside them: {_grouped(self.trained.items())}")
        if self.skipped:
            lines.append(f"left alone: {_grouped(self.skipped.items())}")
        return "\n".join([*lines, *self.notes])


def describe(
    model: nn.Module, left: Mapping[str, str] | None = None, adapter: str | None = None
) -> LoRAReport:
    """Count and name the modules of one adapter; parameters are counted over the whole model.

    Args:
        model: a model with adapters.
        left: the reason for each module that the request leaves out.
        adapter: its name; may be omitted if the model has one adapter, or if one is active.
    """
    adapted = lora_modules(model, adapter)
    trainable, total = count_parameters(model)
    beside = {
        name: module.describe()
        for name, module in adapted.items()
        if isinstance(module, TrainedModule | TrainedTokens)
    }
    return LoRAReport(
        adapted={name: module.rank for name, module in adapted.items() if module.rank},
        skipped=_skipped(model, adapted, left or {}),
        trainable_parameters=trainable,
        frozen_parameters=total - trainable,
        notes=(*_tie_notes(model, adapted), *_small_notes(left or {})),
        trained=beside,
    )


class ParameterCount(NamedTuple):
    """Parameter counts: tied weights count once, stored ones by their elements."""

    trainable: int
    total: int


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count the trainable parameters, and all parameters."""
    stored = sum(weight.numel for weight in stored_weights(model))
    return ParameterCount(
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        total=stored + sum(p.numel() for p in model.parameters()),
    )


def tied_head(model: nn.Module) -> bool:
    """Whether the output head shares its frozen weight with the token table."""
    table = token_table(model)
    table = table.base if isinstance(table, Adapter | SeveralAdapters) else table
    head, shared = (shared_weight(module) for module in (output_head(model), table))
    if isinstance(head, Tensor) and not head.is_meta and has_no_values(head):
        config: Any = model.config  # a model on the disk has a view for each of the two
        return bool(getattr(config.get_text_config(), "tie_word_embeddings", False))
    return head is not None and head is shared


def _tie_notes(model: nn.Module, adapted: Iterable[str]) -> tuple[str, ...]:
    if not tied_head(model):
        return ()
    head, table = output_head(model), token_table(model)
    there = adapted_modules(model)
    ends = [name for name in adapted if there[name] is table or there[name].base is head]
    if any(a.follows for name in ends for a in adapters_at(there[name])):
        return ()  # the two train as one
    return tuple(
        f"{name} shares its frozen weight with the other end of the model; the adapter changes "
        f"{name} alone, and merging it unties the two"
        for name in ends
    )


def _small_notes(left: Mapping[str, str]) -> tuple[str, ...]:
    """The layers that are left out although the targets are all linear layers."""
    small = {name: reason for name, reason in left.items() if reason != "excluded"}
    return (f"left out: {_grouped(small.items())}",) if small else ()


def _skipped(
    model: nn.Module, adapted: Mapping[str, nn.Module], left: Mapping[str, str]
) -> dict[str, str]:
    head = output_head(model)
    skipped = {}
    every = adaptable_modules(model)
    with_experts = {n.rpartition(".")[0] for n, m in every.items() if isinstance(m, ExpertStack)}
    for name, module in every.items():
        if name in adapted:
            continue
        if name in left:
            skipped[name] = left[name]
        elif isinstance(module, ExpertStack):
            skipped[name] = f"{module.shape[0]} experts, not among the target_parameters"
        elif module is head:
            skipped[name] = "output head"
        elif linear_shape(module) is not None:
            skipped[name] = "not among the targets"
        elif isinstance(module, nn.Embedding | FrozenEmbedding):
            skipped[name] = "embedding, not among the targets"
        elif name not in with_experts:
            own = max((p.ndim for p in module.parameters(recurse=False)), default=0)
            if own == 2:
                skipped[name] = "a weight matrix outside any linear layer"
            elif own > 2:
                skipped[name] = f"weights fused into {own}-D tensors, not a linear layer"
    return skipped


def _grouped(pairs: Iterable[tuple[str, str]]) -> str:
    """``q_proj ×2 (rank 8), …``: names by their last part, counted."""
    counts = collections.Counter((name.rpartition(".")[2], what) for name, what in pairs)
    return ", ".join(
        f"{name} ×{count} ({what})" if count > 1 else f"{name} ({what})"
        for (name, what), count in counts.items()
    )
