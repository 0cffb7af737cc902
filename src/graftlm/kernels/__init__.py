"""The operators that graftlm computes with, and the kernels that run them.

`operator` says what an operator is. Each operator stands in a file of its own here, with its
reference there or in `reference/`. Each folder with a module `implementations` holds the kernels
for one kind of device, which that module registers: `native/` for the CPU. To add a device is to
add such a folder. A kernel from outside is registered by `implement`, or by `torch.library` alone.
"""

import importlib
import importlib.util
import pkgutil

from graftlm.kernels import (  # noqa: F401 - each defines its operators
    attention,
    cross_entropy,
    decode_linear,
    factor_gradient,
    gated_unit,
    lora_linear,
    mean_row,
    nf4_convert,
    nf4_linear,
    rms_norm,
    rotary,
    sequence_attention,
)
from graftlm.kernels.operator import Implementation, Operator, implement, operators, withdraw
from graftlm.kernels.self_check import selfcheck

DEVICES = [
    importlib.import_module(f"{__name__}.{folder.name}.implementations")
    for folder in pkgutil.iter_modules(__path__)
    if folder.ispkg and importlib.util.find_spec(f"{__name__}.{folder.name}.implementations")
]
"""The modules that register kernels; each has ``DEVICE`` and ``status()``."""


def status() -> dict[str, dict[str, str]]:
    """The kernels in use on each device that has a folder of kernels, and the reason."""
    return {module.DEVICE: module.status() for module in DEVICES}


__all__ = [
    "Implementation",
    "Operator",
    "implement",
    "operators",
    "selfcheck",
    "status",
    "withdraw",
]
