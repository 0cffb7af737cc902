"""Operators in plain PyTorch. Kernels are compared with them; without a kernel they run.

Short references are in the file of their operator. The NF4 format has its own folder,
`kernels/nf4`.
"""

__all__: list[str] = []
