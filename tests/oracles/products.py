"""How products are rounded on this machine, which says how close a result must be."""

from __future__ import annotations

import torch

from graftlm.kernels import native


def rounds_to_int16(dtype: torch.dtype) -> bool:
    """Whether products of such inputs are of 16-bit whole numbers at the level in use."""
    extension = native.extension()
    rounded = extension is not None and extension.rounded_product() == "int16"
    return rounded and dtype == torch.bfloat16
