"""One pass of the model over new tokens of some rows, with a `RowCache`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from graftlm.models.block_attention import widens
from graftlm.models.decoding.row_cache import RowCache
from graftlm.system.placement import placement_of

__all__ = ["Forward"]


class Forward:
    """Calls a model with what a pass over cached rows needs.

    Args:
        model: a causal language model.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = placement_of(model).device
        names = inspect.signature(model.forward).parameters
        self.takes_positions = "position_ids" in names
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in names else {}

    def cache(self) -> RowCache:
        """An empty cache."""
        return RowCache(widens(self.model))

    def __call__(self, ids: Tensor, cache: RowCache, starts: Sequence[int], length: int) -> Tensor:
        """The logits after the last of the new tokens, (rows, V).

        Args:
            ids: (rows, new) token ids; what stands before a row's start is padding.
            cache: the keys and values of the columns before these.
            starts: the first column of each row.
            length: columns before these.
        """
        new = ids.shape[1]
        columns = torch.arange(length + new)
        first = torch.tensor(list(starts))[:, None]
        inputs: dict[str, Any] = {"input_ids": ids.to(self.device), **self._last_only}
        if any(starts):  # without padding, no mask has to be made
            inputs["attention_mask"] = (columns >= first).long().to(self.device)
        if self.takes_positions:
            inputs["position_ids"] = (columns[length:] - first).clamp_min(0).to(self.device)
        logits: Tensor = self.model(past_key_values=cache, use_cache=True, **inputs).logits
        return logits[:, -1]
