"""Operators in plain PyTorch: what every kernel is compared with, and what runs without one.

Short references stand beside their operator. The NF4 format has its own folder, `kernels/nf4`.
"""

__all__: list[str] = []
