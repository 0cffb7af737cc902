"""The compiled extension: loading it, and which tensors its kernels take.

It is built without PyTorch's headers, so it gets a tensor as an address, a type and sizes. The
callers in this folder check type, layout and size. The kernels are in csrc/.
"""

from __future__ import annotations

import functools
import logging
import os
import types

import torch
from torch import Tensor

from graftlm.errors import ModelError

__all__ = [
    "COMPUTE",
    "TYPES",
    "WEIGHT_TYPES",
    "absence",
    "constant",
    "extension",
    "kernels",
    "takes",
    "takes_rows",
]

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The numbers of the types in C++ (`DType`); a test compares them."""
WEIGHT_TYPES = TYPES | {torch.int8: 3}
"""Also of weights whose rows have a scale each."""
COMPUTE = {"float32": 0, "bfloat16": 1, "bfloat16x3": 2}
"""Numbers of the arithmetics in C++ (`Compute`); a test compares them."""

log = logging.getLogger(__name__)


@functools.cache
def _load() -> tuple[types.ModuleType | None, str]:
    """The extension, or ``None`` and the reason. Logs its absence once, because runs are slow."""
    if os.environ.get("GRAFTLM_NATIVE") == "0":
        return None, "GRAFTLM_NATIVE=0"
    try:
        # After torch: the kernels run on the threads of the OpenMP runtime it has loaded.
        from graftlm import _native  # type: ignore[attr-defined, unused-ignore]

        _native.level()
    except ImportError as error:
        reason = f"the extension is not installed: {error}"
    except ValueError as error:
        raise ModelError(str(error)) from None
    else:
        return _native, ""
    log.warning("graftlm runs without its native kernels, several times slower: %s", reason)
    return None, reason


def extension() -> types.ModuleType | None:
    """The compiled module, or ``None``."""
    return _load()[0]


def absence() -> str:
    """The reason why there is no extension; empty if there is one."""
    return _load()[1]


def kernels() -> types.ModuleType:
    """The compiled module; call it only if `takes` returned true."""
    module = extension()
    assert module is not None, "ask takes() first"
    return module


@functools.cache
def _constants() -> dict[str, float]:
    numbers: dict[str, float] = kernels().constants()
    return numbers


def constant(name: str) -> int:
    """A size that the kernels work with (csrc/bindings.cpp lists them)."""
    return int(_constants()[name])


def takes(tensor: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether the kernels read a tensor on its device, of its type or of the one given."""
    return tensor.is_cpu and (dtype or tensor.dtype) in TYPES and extension() is not None


def takes_rows(weight: Tensor, row_scale: Tensor | None) -> bool:
    """Whether the kernels can read this weight: without scales, or in 8 bits with scales."""
    if row_scale is None:
        return takes(weight)
    scaled = row_scale.dtype == torch.float32 and row_scale.shape == weight.shape[:1]
    return scaled and weight.dtype == torch.int8 and weight.is_cpu and takes(row_scale)
