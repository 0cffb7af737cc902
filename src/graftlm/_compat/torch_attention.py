"""PyTorch's attention kernels, by name. Seen in torch 2.6 to 2.13.

`torch.nn.functional.scaled_dot_product_attention` chooses one by itself. It gives no log-sum-exp,
and for a fake tensor of a GPU that is not here it chooses none of the GPU's.
"""

from __future__ import annotations

import torch

__all__ = [
    "cpu_attention",
    "cpu_attention_backward",
    "efficient_attention",
    "flash_attention",
    "flash_sequences",
    "flash_sequences_backward",
]

cpu_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
cpu_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
flash_attention = torch.ops.aten._scaled_dot_product_flash_attention.default
"""A GPU's, in 16 bits and without a mask."""
efficient_attention = torch.ops.aten._scaled_dot_product_efficient_attention.default
"""A GPU's, in any type and with a mask."""
flash_sequences = torch.ops.aten._flash_attention_forward.default
"""A GPU's, for sequences end to end, in 16 bits: what `torch.nn.attention.varlen` calls, which came
with torch 2.10 and learned of windows and groups of heads later."""
flash_sequences_backward = torch.ops.aten._flash_attention_backward.default
