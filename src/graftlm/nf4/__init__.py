"""4-bit NormalFloat in plain PyTorch: the reference every kernel is tested against."""

from graftlm.nf4.bitsandbytes_format import from_bitsandbytes, to_bitsandbytes
from graftlm.nf4.dequantize import dequantize
from graftlm.nf4.quantize import quantize
from graftlm.nf4.weight import NF4Weight

__all__ = ["NF4Weight", "dequantize", "from_bitsandbytes", "quantize", "to_bitsandbytes"]
