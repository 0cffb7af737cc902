"""How PEFT renames the tensors of an adapter when it reads them.

Seen in transformers 5.23 and PEFT 0.21.

transformers 5 renames modules of some architectures when it reads a checkpoint:

    WeightRenaming("mlp.shared_expert.", "mlp.shared_experts.")        Laguna

PEFT applies the same patterns to the keys of an adapter, also where they are new names already. A
pattern that fits a new name too then makes a name that no module has, and the tensor is dropped
with a warning:

    mlp.shared_experts.gate_proj  →  mlp.shared_experts..gate_proj
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedModel
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    get_model_conversion_mapping,
)

from graftlm._compat.loader import WeightRenaming

__all__ = ["PeftRenaming"]


class PeftRenaming:
    """The renaming of one model's adapters. A key is the name of a tensor without PEFT's prefix."""

    def __init__(self, model: PreTrainedModel) -> None:
        kind = model.config.model_type
        known = get_checkpoint_conversion_mapping(kind) is not None  # type: ignore[no-untyped-call]
        every = get_model_conversion_mapping(model) if known else []
        self._forward = [one for one in every if isinstance(one, WeightRenaming)]

    def read(self, key: str) -> str:
        """The key that PEFT makes of ``key``."""
        new = _renamed(key, self._forward)
        return key if key.endswith(new) else new  # PEFT takes a lost beginning back

    def written(self, key: str) -> str | None:
        """A key of which PEFT makes ``key``: itself, the checkpoint's, or ``None``."""
        if self.read(key) == key:
            return key
        backward = [one.reverse_transform() for one in reversed(self._forward)]
        old = _renamed(key, backward)
        return old if self.read(old) == key else None


def _renamed(key: str, renamings: Iterable[Any]) -> str:
    for one in renamings:
        key, _ = one.rename_source_key(key)
    return key
