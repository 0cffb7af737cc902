"""LoftQ: the adapter starts as the best correction of the 4-bit weight (arXiv 2310.08659).

    Ŵ = Q(W)                        the stored weight, as QLoRA holds it
    W - Ŵ ≈ U_r S_r V_rᵀ            the best approximation of rank r of the rounding error
    A = √(S_r / s) V_rᵀ             B = U_r √(S_r / s)

so that Ŵ + s · B A is closer to W than Ŵ at step 0. This is the first iteration of the paper's
alternation, PEFT's default and its `replace_lora_weights_loftq`: it leaves Ŵ as it is, so the saved
adapter fits every copy of the base in this 4-bit format. Further iterations would quantise another
matrix, W - s · B A, and so need a base of their own: on any other the adapter would be wrong, and
no tool could tell. There is none here. They gain little in 4 bits: of Gemma-3-270M's weights (three
layers, rank 16) NF4 loses 9.2 to 9.5 %, 8.3 to 9.2 % are lost after one iteration, 7.9 to 8.7 %
after five.

    W  original      Ŵ  stored      s  scaling      r  rank
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from graftlm.adapters.initial import pissa

if TYPE_CHECKING:
    from graftlm.adapters.lora_linear import LoRALinear

__all__ = ["factors"]


def factors(original: Tensor, stored: Tensor, adapter: LoRALinear) -> tuple[Tensor, Tensor]:
    """A [r, in] and B [out, r] from W and Ŵ [out, in], both in float32."""
    error = original.to(stored.device) - stored
    return pissa.factors(error, adapter.rank, adapter.scaling)
