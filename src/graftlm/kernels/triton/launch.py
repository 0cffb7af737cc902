"""What all launchers share: the device of a launch, tables on it, arithmetic of products."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
from torch import Tensor

from graftlm.kernels.nf4.codebook import dynamic_levels, grid_codes, nf4_levels, nf4_thresholds

__all__ = [
    "LARGEST_RANK",
    "TYPES",
    "WIDEST_HEAD",
    "WIDEST_ROW",
    "buffer",
    "cdiv",
    "fast_dots",
    "on_device_of",
    "power_of_two",
    "precision",
    "table",
]

TYPES = (torch.float16, torch.bfloat16, torch.float32)
"""The types of activations and weights that the kernels take."""

LARGEST_RANK = 256
"""The rank of an update is one side of a tile."""
WIDEST_ROW = 32768
"""Numbers of a row that fit in the registers of a program."""
WIDEST_HEAD = 1024
"""Numbers of a head that turn in the registers of a program."""

_NARROW = (torch.float16, torch.bfloat16)
_TABLES = {
    "dynamic": dynamic_levels,
    "grid": grid_codes,
    "levels": nf4_levels,
    "thresholds": nf4_thresholds,
}
_buffers: dict[tuple[torch.device, torch.dtype], Tensor] = {}


def cdiv(numerator: int, denominator: int) -> int:
    """The quotient, rounded up."""
    return -(-numerator // denominator)


def power_of_two(number: int, least: int = 1) -> int:
    """The smallest power of two that is at least ``number`` and ``least``."""
    return max(least, 1 << max(0, number - 1).bit_length())


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Make the device of ``tensor`` the current one: Triton launches on the current device."""
    if tensor.is_cpu or tensor.is_meta:  # in the interpreter, and where launches are recorded
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[Any] = getattr(torch, tensor.device.type).device(
        tensor.device
    )
    return context


@functools.cache
def table(name: str, device: torch.device) -> Tensor:
    """A table of the 4-bit format on a device. Copied once, as each copy waits for the device."""
    return _TABLES[name](device)


def buffer(like: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
    """Memory for ``numel`` numbers that the next call gets again; it grows to the largest request.

    One weight at a time is dequantised into it. On one stream, the product that reads the previous
    weight is over before the next weight is written.
    """
    key = like.device, dtype
    kept = _buffers.get(key)
    if kept is None or kept.numel() < numel:
        _buffers.pop(key, None)  # free it before the larger one is allocated
        kept = _buffers[key] = torch.empty(numel, dtype=dtype, device=like.device)
    return kept[:numel]


def fast_dots(x: Tensor) -> bool:
    """Whether products inside a kernel run at the speed of the hardware for inputs like ``x``.

    Triton uses the tensor cores of NVIDIA from Ampere on (a T4 has older ones), and only for narrow
    types. Elsewhere the vendor's library multiplies. The interpreter, and a launch that is only
    compiled, take any.
    """
    if x.is_cpu or x.is_meta:
        return True
    return x.dtype in _NARROW and _has_known_tensor_cores(x.device)


@functools.cache
def _has_known_tensor_cores(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.hip is not None or not torch.cuda.is_available():
        return True  # a plan for a card that is not here assumes one that has them
    return torch.cuda.get_device_capability(device) >= (8, 0)


def precision() -> str:
    """How `tl.dot` multiplies float32: exactly, or in TF32 if the user allows it."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
