"""4-bit NormalFloat in plain PyTorch: the reference every kernel is tested against."""

from graftlm.kernels.nf4.dequantize import dequantize
from graftlm.kernels.nf4.quantize import quantize
from graftlm.kernels.nf4.weight import NF4Weight

__all__ = ["NF4Weight", "dequantize", "quantize"]
