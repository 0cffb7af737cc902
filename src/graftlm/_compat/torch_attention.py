"""PyTorch's attention kernel for the CPU. Seen in torch 2.6 to 2.13.

`torch.nn.functional.scaled_dot_product_attention` chooses it by itself, but gives no log-sum-exp.
"""

from __future__ import annotations

import torch

__all__ = ["cpu_attention", "cpu_attention_backward"]

cpu_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
cpu_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
