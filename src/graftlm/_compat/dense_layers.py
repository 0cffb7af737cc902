"""Linear layers that must keep a dense weight; seen in transformers 5.23.

`_keep_in_fp32_modules` of a model class lists layers that transformers never quantises, so a folder
that stores them in 4 bits cannot be opened there (DeepSeek-V4's compressors). A name matches from
the start of a layer's name, as a regular expression up to the end of a part, or at its end.

Gemma 3n clamps the weight of `prediction_coefs` in place in each forward pass of training.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

__all__ = ["dense_layers"]

WRITTEN_BY_THE_MODEL = {
    "gemma3n": ("prediction_coefs",),
    "gemma3n_text": ("prediction_coefs",),
}
"""By model type: the last part of the names."""


def dense_layers(model: Any, names: Iterable[str]) -> set[str]:
    """Of the linear layers ``names``, those whose weight must stay dense."""
    kind = getattr(getattr(model, "config", None), "model_type", "")
    written = WRITTEN_BY_THE_MODEL.get(kind, ())
    patterns = list(getattr(model, "_keep_in_fp32_modules", None) or ())

    def kept(name: str) -> bool:
        if name.rpartition(".")[2] in written:
            return True
        return any(
            re.match(rf"(?:{pattern})(?:(?<=\.)|(?=\.|$))", name) or name.endswith(pattern)
            for pattern in patterns
        )

    return {name for name in names if kept(name)}
