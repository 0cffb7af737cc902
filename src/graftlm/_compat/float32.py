"""Which parameters of a transformers model stay in float32 although the model is in 16 bits.

Seen in transformers 5.23: `_keep_in_fp32_modules`, `_keep_in_fp32_modules_strict`, lists of
words that a parameter's name is searched for.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["kept_in_float32"]


def kept_in_float32(model: Any, dtype: torch.dtype) -> set[str]:
    """Parts of the names of the parameters that a model loaded in ``dtype`` keeps in float32."""
    parts = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        parts |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    return parts
