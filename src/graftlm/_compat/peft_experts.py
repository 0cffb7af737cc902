"""Names of layers that PEFT 0.21 takes for experts; seen in transformers 5.23.

transformers 5 fuses the experts of a layer into two parameters, so PEFT reads the names that
version 4 gave to one expert's layers (`gate_proj`, …) as those parameters. It does so wherever an
entry of ``target_modules`` ends with such a name, also for layers that are no experts: the dense
layers at the model's beginning, and shared experts. Their adapters are then dropped with a warning.

An entry of ``target_parameters`` is not reinterpreted. It names the weight itself, and the tensors
in the file have the same names either way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers.conversion_mapping import _MODEL_TO_CONVERSION_PATTERN

__all__ = ["EXPERT_NAMES", "taken_for_experts"]

EXPERT_NAMES = {
    "mixtral": frozenset({"gate", "w1", "w2", "w3"}),
    "qwen2_moe": frozenset({"gate", "gate_proj", "up_proj", "down_proj"}),
}
"""By the kind of conversion: the names in PEFT's own table (a test compares)."""


def taken_for_experts(config: Any, names: Iterable[str]) -> list[str]:
    """Of the linear layers ``names``, those that PEFT would take for experts.

    Args:
        config: the model's.
        names: their names in the model.
    """
    kind = str(getattr(config, "model_type", None))
    # PEFT adds this entry to transformers' table.
    conversion = "mixtral" if kind == "mixtral" else _MODEL_TO_CONVERSION_PATTERN.get(kind)
    taken = EXPERT_NAMES.get(conversion or "", frozenset())
    return [name for name in names if name.rpartition(".")[2] in taken]
