"""Registers the kernels of this folder, for CUDA and ROCm (which torch also calls cuda) and XPU.

Triton is imported when the first kernel runs, so that `import graftlm` costs nothing more.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graftlm.kernels.operator import implement
from graftlm.kernels.products import rows_of
from graftlm.kernels.triton import sequence_attention as flash
from graftlm.kernels.triton.launch import (
    LARGEST_RANK,
    TYPES,
    WIDEST_HEAD,
    WIDEST_ROW,
    fast_dots,
)

__all__ = ["DEVICE", "absence", "status"]

DEVICE = "cuda"

_KINDS = ("cuda", "xpu")
_TILE = 1 << 24
"""Logits of a tile; a test compares it with the file of the kernel."""


def absence() -> str | None:
    """Why the kernels cannot run here; ``None`` if they can."""
    if _installed():
        return None
    return "triton is not installed (pip install triton; PyTorch for CUDA brings it along)"


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def status() -> dict[str, str]:
    """The kernels in use on CUDA and XPU, and the reason."""
    missing = absence()
    if missing is not None:
        return {"runs": "PyTorch reference", "because": missing}
    return {"runs": "Triton kernels", "triton": importlib.metadata.version("triton")}


def _kernel(module: str, name: str) -> Callable[..., Any]:
    """The launcher of this name, imported when it is called."""

    def call(*arguments: Any) -> Any:
        return getattr(importlib.import_module(f"graftlm.kernels.triton.{module}"), name)(
            *arguments
        )

    return call


def _takes(x: Tensor, *_: Any) -> bool:
    return x.dtype in TYPES and _installed()


def _takes_codes(codes: Tensor, *rest: Any) -> bool:
    return rest[-1] in TYPES and _installed()


def _takes_norm(*tensors: Any) -> bool:
    x = tensors[0]
    return _takes(x) and 0 < x.shape[-1] <= WIDEST_ROW


def _takes_turn(x: Tensor, cos: Tensor, sin: Tensor, *_: Any) -> bool:
    return _takes(x) and cos.dtype in TYPES and sin.dtype in TYPES and x.shape[-1] <= WIDEST_HEAD


def _takes_update(x: Tensor, *rest: Any) -> bool:
    A = rest[-4]
    return _takes(x) and 0 < A.shape[0] <= LARGEST_RANK


def _takes_dense_update(x: Tensor, w: Tensor, *rest: Any) -> bool:
    return _takes_update(x, *rest) and w.dtype in TYPES


def _takes_thin(thin: Tensor, wide: Tensor, *_: Any) -> bool:
    return _takes(wide) and fast_dots(wide) and thin.shape[-1] <= LARGEST_RANK


def _takes_head(hidden: Tensor, weight: Tensor, *rest: Any) -> bool:
    return (
        _takes(hidden)
        and fast_dots(hidden)
        and (weight.dtype in TYPES or weight.dtype == torch.int8)
        and not rest[6]  # label smoothing needs the sum of the logits, which the kernel lacks
    )


def _weight(x: Tensor, *rest: Any) -> int:
    """The dense weight, in the buffer that all products share."""
    rows, columns = rest[4]
    return int(rows * columns * x.dtype.itemsize)


def _parts(thin: Tensor, wide: Tensor, *_: Any) -> int:
    """The parts of the sum over rows, and their sum."""
    parts = max(1, min(16, rows_of(wide) // 256))
    return 0 if parts == 1 else int(4 * parts * thin.shape[-1] * wide.shape[-1])


def _tile(hidden: Tensor, weight: Tensor, *rest: Any) -> int:
    """The logits of a tile, the rows of the targets, and the sums of a position."""
    positions, width = hidden.shape
    words = min(weight.shape[0], max(_TILE // max(positions, 1) // 64 * 64, 512))
    return int(4 * positions * (words + 4 + (width if rest[-1] else 0)))


def _nothing(*_: Any) -> int:
    return 0


for _kind in _KINDS:
    for _operator, _module, _accepts, _workspace in (
        ("nf4_quantize", "nf4_quantize.quantize", _takes, _nothing),
        ("nf4_double_quantize", "nf4_quantize.double_quantize", _takes, _nothing),
        ("nf4_dequantize", "nf4_dequantize.dequantize", _takes_codes, _nothing),
        ("nf4_linear", "products.nf4_linear", _takes, _weight),
        ("nf4_linear_backward", "products.nf4_linear_backward", _takes, _weight),
        ("nf4_lora_linear", "products.nf4_lora_linear", _takes_update, _weight),
        ("nf4_lora_linear_backward", "products.nf4_lora_linear_backward", _takes_update, _weight),
        ("lora_linear", "products.lora_linear", _takes_dense_update, _nothing),
        ("lora_linear_backward", "products.lora_linear_backward", _takes_dense_update, _nothing),
        ("factor_gradient", "factor_gradient.factor_gradient", _takes_thin, _parts),
        ("rms_norm", "rms_norm.rms_norm", _takes_norm, _nothing),
        ("rms_norm_backward", "rms_norm.rms_norm_backward", _takes_norm, _nothing),
        ("gated_unit", "gated_unit.gated_unit", _takes, _nothing),
        ("gated_unit_backward", "gated_unit.gated_unit_backward", _takes, _nothing),
        ("rotary", "rotary.rotary", _takes_turn, _nothing),
        ("cross_entropy", "cross_entropy.cross_entropy", _takes_head, _tile),
    ):
        implement(
            _operator,
            _kind,
            _kernel(*_module.split(".")),
            accepts=_accepts,
            workspace=_workspace,
            label="triton",
        )

implement(
    "sequence_attention",
    "cuda",
    flash.sequence_attention,
    accepts=flash.takes,
    label="PyTorch",
)
implement(
    "sequence_attention_backward",
    "cuda",
    flash.sequence_attention_backward,
    accepts=flash.takes_backward,
    workspace=flash.backward_workspace,
    label="PyTorch",
)
