"""Kernels for the CPU, in C++ (csrc/README.md): this folder calls and registers them.

`implementations` registers them. The rest of graftlm does not import this folder; it asks an
operator whether it has a kernel.
"""

from graftlm.kernels.native.compiled import absence, extension, takes, takes_rows

__all__ = ["absence", "extension", "takes", "takes_rows"]
