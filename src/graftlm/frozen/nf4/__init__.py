"""4-bit NormalFloat (arXiv 2305.14314), with the fastest kernels for this machine.

`graftlm.kernels.nf4` holds the same functions in plain PyTorch: the reference.
"""

from __future__ import annotations

from graftlm.frozen.nf4.bitsandbytes_format import from_bitsandbytes, to_bitsandbytes
from graftlm.kernels.nf4.weight import NF4Weight
from graftlm.kernels.ops import dequantize, quantize

__all__ = ["NF4Weight", "dequantize", "from_bitsandbytes", "quantize", "to_bitsandbytes"]
