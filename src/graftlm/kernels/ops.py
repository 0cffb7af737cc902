"""The functions that layers call; each is defined in the file of its operator."""

from graftlm.kernels.lora_linear import lora_linear
from graftlm.kernels.nf4_convert import dequantize, quantize, shrink_maxima
from graftlm.kernels.nf4_linear import linear
from graftlm.kernels.products import Compute

__all__ = ["Compute", "dequantize", "linear", "lora_linear", "quantize", "shrink_maxima"]
