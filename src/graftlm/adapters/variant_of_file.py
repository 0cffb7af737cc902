"""Which variant of adapters the files of a folder in PEFT's format hold.

The entries of adapter_config.json that a variant writes (`Adapter.peft_config`) identify it. If
they fit several variants equally, the names of the tensors decide; then plain LoRA comes first.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from graftlm.adapters.adapter import adapter_classes, variants
from graftlm.config import LoRAConfig
from graftlm.errors import ModelError
from graftlm.models.safetensors_file import read_header

__all__ = ["WEIGHTS_NAME", "marks", "suffix_patterns", "variant_of"]

WEIGHTS_NAME = "adapter_model.safetensors"


def marks(variant: str) -> dict[str, Any]:
    """The entries of adapter_config.json that distinguish ``variant`` from others."""
    return {key: value for c in adapter_classes(variant) for key, value in c.peft_config.items()}


def suffix_patterns(variant: str) -> dict[str, re.Pattern[str]]:
    """For each end of a key in the file, the pattern of the whole key.

    `lora_A.weight` → any module, `lora_A`, perhaps an adapter's name, `weight`.
    """
    patterns = {}
    for suffix in (key for c in adapter_classes(variant) for key in c.peft_keys.values()):
        stem, weight, _ = suffix.partition(".weight")
        patterns[suffix] = re.compile(
            rf"(?P<module>.+)\.{re.escape(stem)}(\.[^.]+)?{re.escape(weight)}"
        )
    return patterns


def variant_of(given: Mapping[str, Any], folder: Path) -> str | None:
    """The variant that the files in ``folder`` hold; ``None`` if no registered one fits.

    Args:
        given: the entries of its adapter_config.json.
        folder: is read only if several variants fit ``given`` equally.
    """
    fitting = [
        variant
        for variant in variants()
        if all(given.get(key) == value for key, value in marks(variant).items())
    ]
    most = max((len(marks(variant)) for variant in fitting), default=0)
    fitting = [variant for variant in fitting if len(marks(variant)) == most]
    if len(fitting) < 2:
        return next(iter(fitting), None)
    keys, plain = _keys(folder), LoRAConfig().variant
    return min(fitting, key=lambda name: (_unknown(name, keys), name != plain, name))


def _unknown(variant: str, keys: Collection[str]) -> int:
    """How many of the tensors ``keys`` do not belong to ``variant``."""
    patterns = suffix_patterns(variant).values()
    return sum(not any(pattern.fullmatch(key) for pattern in patterns) for key in keys)


def _keys(folder: Path) -> Collection[str]:
    """The names of the tensors; none if the file cannot be read, which its reader then says."""
    try:
        return read_header(folder / WEIGHTS_NAME)
    except ModelError:
        return ()
