"""LoRA's normal start (arXiv 2106.09685, section 4.1), as PEFT scales it.

A ~ N(0, 1 / r²)        B = 0

A [r, in]  lora_A       r  the rank
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["fill"]


def fill(A: Tensor) -> None:
    """Draw A [r, in], in place; B stays zero."""
    nn.init.normal_(A, std=1 / A.shape[0])
