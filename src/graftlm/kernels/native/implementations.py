"""Registers every kernel of this folder, and reports what they run on."""

from __future__ import annotations

from graftlm.kernels.native import (
    attention,
    compiled,
    convert,
    cross_entropy,
    elementwise,
    linear,
    torch_attention,
)

__all__ = ["DEVICE", "status"]

DEVICE = "cpu"

# The last registered kernel that accepts a call runs it, so PyTorch's attention is the last choice.
for module in (torch_attention, convert, linear, elementwise, attention, cross_entropy):
    module.register()


def status() -> dict[str, str]:
    """The kernels in use on the CPU, the reason, and the arithmetic of products by input type."""
    module = compiled.extension()
    if module is None:
        return {"runs": "PyTorch reference", "because": compiled.absence()}
    products = {
        "amx bf16": "bfloat16, in AMX tiles",
        "int16": "whole numbers of 16 bits",
        "float32": "float32",
    }
    threads = {
        "openmp": "the OpenMP pool of PyTorch",
        "threads": "started for each call: no OpenMP runtime found",
        "serial": "one: this is a forked process",
    }
    return {
        "runs": "native kernels",
        "level": module.level(),
        "threads": threads[module.thread_runtime()],
        "bfloat16 products": products[module.rounded_product()],
    }
