"""Registers every kernel of this folder, and says what they run on."""

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

# Of two that accept a call, the one registered last runs it: PyTorch's attention is what is left.
for module in (torch_attention, convert, linear, elementwise, attention, cross_entropy):
    module.register()


def status() -> dict[str, str]:
    """What runs on the CPU, why, and the arithmetic of products by the type of their input."""
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
