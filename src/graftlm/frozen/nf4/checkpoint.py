"""NF4 on disk: the checkpoints of bitsandbytes, as transformers writes and reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graftlm.frozen.checkpoint_format import CheckpointFormat
from graftlm.frozen.nf4.bitsandbytes_format import from_bitsandbytes, to_bitsandbytes
from graftlm.frozen.weight import FrozenWeight, StorageSettings

if TYPE_CHECKING:
    from graftlm.frozen.nf4.frozen_nf4 import FrozenNF4

__all__ = ["BitsandbytesFormat"]

STATE = ".weight.quant_state.bitsandbytes__"
WEIGHT = ".weight"


class BitsandbytesFormat(CheckpointFormat):
    """Weights that `bitsandbytes_format` reads and writes."""

    title = "bitsandbytes NF4"

    @classmethod
    def recognises(cls, config: Mapping[str, Any]) -> bool:
        """Whether bitsandbytes stored the weights in NF4."""
        four_bit = bool(config.get("load_in_4bit") or config.get("_load_in_4bit"))
        kind = config.get("bnb_4bit_quant_type", "fp4")
        return config.get("quant_method") == "bitsandbytes" and four_bit and kind == "nf4"

    @classmethod
    def stored_weights(cls, names: Iterable[str]) -> dict[str, list[str]]:
        """Weights that have a quantisation state beside them, also one that is not NF4.

        `open` refuses the latter by name.
        """
        names = list(names)
        stored: dict[str, list[str]] = {
            name.partition(STATE)[0]: [] for name in names if STATE in name
        }
        for name in names:
            # "a.weight.absmax" and "a.weight" belong to "a".
            prefix = f"{name}.".rpartition(f"{WEIGHT}.")[0]
            if prefix in stored:
                stored[prefix].append(name)
        return stored

    @classmethod
    def open(cls, tensors: Mapping[str, Tensor], prefix: str) -> FrozenNF4:
        """See `from_bitsandbytes`."""
        from graftlm.frozen.nf4.frozen_nf4 import FrozenNF4

        return FrozenNF4(from_bitsandbytes(tensors, prefix))

    @classmethod
    def write(cls, weight: FrozenWeight, prefix: str) -> dict[str, Tensor]:
        """See `to_bitsandbytes`."""
        from graftlm.frozen.nf4.frozen_nf4 import FrozenNF4

        if not isinstance(weight, FrozenNF4):
            raise TypeError(f"{weight.format} is not NF4")
        return to_bitsandbytes(weight.stored, prefix)

    @classmethod
    def config(
        cls, settings: StorageSettings, dtype: torch.dtype, kept: list[str]
    ) -> dict[str, Any]:
        """As transformers reads it; the keys that are absent have harmless defaults there."""
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": settings.double_quant,
            "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."),
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": kept,
        }
