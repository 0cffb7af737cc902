"""The capabilities of a model, measured once on the model itself and cached.

Class name and config do not tell how a model treats packed sequences or its logits, so each
capability is measured by a short forward pass. The cache lives as long as the model. Code that
replaces a module of the model, such as attaching adapters, must call `forget`.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from graftlm.errors import ConfigError, ModelError
from graftlm.models import block_attention, packing_support
from graftlm.models.decoding.support import continues_rows
from graftlm.models.output_head import OutputHead, find_output_head
from graftlm.models.probing import being_probed
from graftlm.system.placement import placement_of

__all__ = ["Capabilities", "capabilities", "forget", "require_left_to_right", "require_packable"]

ROUNDING = 1e-3
"""Largest difference of logits, in their standard deviations: zero, as masked tokens add zero."""

_answers: weakref.WeakKeyDictionary[nn.Module, dict[str, Any]] = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """The capabilities of one model. Each is measured when it is first read."""

    model: Any

    @property
    def output_head(self) -> OutputHead | None:
        """How hidden states become logits; ``None``: only the model's `forward` can tell."""
        head: OutputHead | None = self._once("output_head", find_output_head)
        return head

    @property
    def keeps_sequences_apart(self) -> bool:
        """Whether sequences laid end to end give the same logits as one by one."""
        apart: bool = self._once("keeps_sequences_apart", packing_support.keeps_apart)
        return apart

    @property
    def takes_positions(self) -> bool:
        """Whether the model accepts position ids that restart at each sequence."""
        return packing_support.takes_positions(self.model)

    @property
    def reads_left_to_right(self) -> bool:
        """Whether no logit depends on a later token; in an encoder it does."""
        ordered: bool = self._once("reads_left_to_right", _reads_left_to_right)
        return ordered

    @property
    def continues_rows(self) -> bool:
        """Whether rows of different lengths can be continued together with one cache."""
        able: bool = self._once("continues_rows", continues_rows)
        return able

    @property
    def attends_by_blocks(self) -> bool:
        """Whether attention over sequences laid end to end takes as long as one by one."""
        return block_attention.attends_by_blocks(self.model)

    @property
    def attends_between_borders(self) -> bool:
        """Whether its device attends to sequences laid end to end without a mask: some GPUs do."""
        able: bool = self._once("attends_between_borders", _attends_between_borders)
        return able

    def _once(self, name: str, probe: Callable[[Any], Any]) -> Any:
        answers = _answers.setdefault(self.model, {})
        if name not in answers:
            answers[name] = probe(self.model)
        return answers[name]


def capabilities(model: Any) -> Capabilities:
    """The capabilities of ``model`` (a transformers model), cached until `forget`."""
    return Capabilities(model)


def forget(model: nn.Module) -> None:
    """Drop the cached capabilities, because the model's modules have changed."""
    _answers.pop(model, None)


def require_packable(model: Any) -> None:
    """Refuse a model that does not keep packed sequences apart.

    Raises:
        ConfigError: the model mixes packed sequences.
    """
    if not capabilities(model).keeps_sequences_apart:
        raise ConfigError(
            f"data.packing: {type(model).__name__} does not keep packed sequences apart (a "
            "sequence's logits change behind another). Set data.packing to false; "
            "data.group_by_length saves most of the padding too."
        )


def require_left_to_right(model: Any) -> None:
    """Refuse to train a model that sees the tokens it has to predict.

    Raises:
        ModelError: a logit of the model depends on later tokens.
    """
    if not capabilities(model).reads_left_to_right:
        raise ModelError(
            f"{type(model).__name__} is not a causal language model: what it says at a token "
            "depends on the tokens after it, which it would have to predict. Train a model that "
            "reads from left to right, such as gemma-3-270m."
        )


def _attends_between_borders(model: Any) -> bool:
    return (
        block_attention.attends_by_blocks(model)
        and capabilities(model).keeps_sequences_apart
        and packing_support.attends_between_borders(model)
    )


def _reads_left_to_right(model: Any) -> bool:
    """Whether two rows with the same beginning have the same logits there."""
    count = min(int(model.get_input_embeddings().num_embeddings), 100)
    start, row = 4, torch.arange(8)
    ids = torch.stack([row, torch.where(row < start, row, row + 11)]).remainder(count)
    with being_probed(model):
        device = placement_of(model).first
        logits = model(input_ids=ids.to(device), use_cache=False).logits[:, :start].float()
    if not logits.isfinite().all():
        raise ModelError(
            f"{type(model).__name__} computes NaN or infinity for a row of {ids.shape[1]} tokens: "
            "its weights hold such numbers, or are too large for their type. Check the checkpoint "
            f"({getattr(model, 'name_or_path', '') or 'without a name'}), or load it in float32."
        )
    return float((logits[0] - logits[1]).abs().max()) <= ROUNDING * float(logits.std())
