"""Kernels in Triton: one source for NVIDIA (CUDA), AMD (ROCm) and Intel (XPU).

`implementations` registers them, and imports Triton only when the first of them runs. Each file is
a kernel and its launcher. Without Triton the references run, in plain PyTorch.

All kernels accumulate in float32. Products take 16-bit factors; float32 factors multiply as
`torch.set_float32_matmul_precision` says. Sizes of tiles are fixed, since no card has tuned them.
"""

__all__: list[str] = []
