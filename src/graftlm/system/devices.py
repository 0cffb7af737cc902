"""The accelerators of this machine: which ones torch can use, and why it cannot use another.

kind    hardware                       torch asks it by
cuda    NVIDIA, or AMD under ROCm      torch.cuda
xpu     Intel                          torch.xpu
mps     Apple                          torch.mps
"""

from __future__ import annotations

import functools
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from graftlm.errors import ConfigError

__all__ = [
    "KINDS",
    "accelerators",
    "backends_here",
    "device_name",
    "device_named",
    "has_bfloat16",
    "library_of",
    "require_usable",
    "unusable_gpu",
]

KINDS = ("cuda", "xpu", "mps")
"""Kinds of accelerators, as torch names them."""

BACKENDS = {"cuda": "nccl", "xpu": "xccl"}
"""What adds tensors up over processes, by the kind of their device; on a CPU gloo does."""

_EXPECTED = "expected auto, cpu, cuda, cuda:N, mps or xpu"
_NVIDIA = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidia0"))
_AMD = Path("/dev/kfd")
_INSTALL = "pytorch.org/get-started says how to install one"


def device_named(request: str) -> torch.device | None:
    """The device of a setting; ``None`` for ``auto``. An accelerator gets its number, 0 by default.

    Raises:
        ConfigError: this is not the name of a device.
    """
    if request == "auto":
        return None
    match = re.fullmatch(r"(cpu|cuda|xpu|mps)(?::(\d+))?", request)
    if match is None or (match[1] in ("cpu", "mps") and match[2] not in (None, "0")):
        raise ConfigError(f"device {request!r}: {_EXPECTED}")
    if match[1] == "cpu":
        return torch.device("cpu")
    return torch.device(match[1], int(match[2] or 0))


def library_of(device: torch.device) -> Any:
    """The module of torch for a kind of accelerator, such as `torch.cuda`."""
    return getattr(torch, device.type)


def accelerators() -> list[torch.device]:
    """The accelerators that torch can use here, of all kinds."""
    found = []
    for kind in KINDS:
        library = getattr(torch, kind, None)
        if library is None or not _available(library):
            continue
        count = 1 if kind == "mps" else library.device_count()
        devices = (torch.device(kind, index) for index in range(count))
        found += [device for device in devices if _too_old(device) is None]
    return found


def _available(library: Any) -> bool:
    with warnings.catch_warnings():  # torch warns where the driver is older than torch
        warnings.simplefilter("ignore")
        return bool(library.is_available())


def backends_here(local_rank: int) -> str:
    """What adds up over processes here, as `torch.distributed.init_process_group` takes it.

    Also makes the accelerator number ``local_rank`` this process's own.
    """
    found = "cpu:gloo"
    for kind in sorted({device.type for device in accelerators()} & BACKENDS.keys()):
        found += f",{kind}:{BACKENDS[kind]}"
        library_of(torch.device(kind)).set_device(local_rank)
    return found


def device_name(device: torch.device) -> str:
    """What the maker calls this accelerator; the kind of device if torch cannot tell."""
    naming = getattr(library_of(device), "get_device_name", None)
    return device.type if naming is None else str(naming(device))


def has_bfloat16(device: torch.device) -> bool:
    """Whether an accelerator of this machine multiplies bfloat16 in hardware."""
    if device.type != "cuda":
        return True
    return bool(torch.cuda.get_device_capability(device) >= (8, 0))


def require_usable(device: torch.device) -> None:
    """Refuse an accelerator that torch cannot use here.

    Raises:
        ConfigError: with the reason and the remedy.
    """
    known = accelerators()
    if device in known:
        return
    of_kind = [str(one) for one in known if one.type == device.type]
    why = _too_old(device) if _available(library_of(device)) else None
    if why is None and of_kind:
        why = f"this machine has {', '.join(of_kind)}"
    why = why or unusable_gpu() or f"torch finds no {device.type} device on this machine"
    raise ConfigError(f"device {device} cannot be used: {why}. Or use device=cpu.")


def _too_old(device: torch.device) -> str | None:
    """Why a GPU that torch finds cannot run it: torch was built for newer ones. Else ``None``."""
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    if (device.index or 0) >= torch.cuda.device_count():
        return None
    capability = torch.cuda.get_device_capability(device)
    built_for = torch.cuda.get_arch_list()
    if not built_for or capability_fits(capability, built_for):
        return None
    return (
        f"{device_name(device)} has compute capability {capability[0]}.{capability[1]}, and this "
        f"torch ({torch.__version__}) was built for {', '.join(built_for)}: install a torch that "
        f"still has sm_{capability[0]}{capability[1]}, which older releases have; {_INSTALL}"
    )


def capability_fits(capability: tuple[int, int], built_for: Sequence[str]) -> bool:
    """Whether code for these architectures runs on a GPU of this capability.

    Binary code (``sm_86``) runs on the same major version from its minor one; portable code
    (``compute_86``) runs on every newer GPU. Code with a letter (``sm_90a``) runs on one GPU only.
    """
    for name in built_for:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", name)
        if match is None:
            continue
        major, minor = int(match[2]), int(match[3])
        exact = (major, minor) == capability
        newer = (major, minor) <= capability
        if exact or (not match[4] and newer and (match[1] == "compute" or major == capability[0])):
            return True
    return False


def unusable_gpu() -> str | None:
    """A GPU of this machine that torch cannot use, and the remedy; ``None`` if there is none."""
    if accelerators():
        return None
    if sys.platform == "darwin" or not sys.platform.startswith("linux"):
        return None  # nothing here says cheaply whether there is one
    if any(path.exists() for path in _NVIDIA):
        return _reason("an NVIDIA GPU", "CUDA", torch.version.cuda)
    if _AMD.exists():
        return _reason("an AMD GPU", "ROCm", torch.version.hip)
    return None


def _reason(what: str, platform: str, built_with: str | None) -> str:
    if built_with is None:
        return (
            f"this machine has {what}, but this torch ({torch.__version__}) was built without "
            f"{platform}: install a {platform} build of torch; {_INSTALL}"
        )
    if torch.cuda.device_count() and (old := _too_old(torch.device("cuda", 0))) is not None:
        return old
    tool = "nvidia-smi" if platform == "CUDA" else "rocminfo"
    return (
        f"this machine has {what}, but torch (built for {platform} {built_with}) cannot reach it: "
        f"see whether `{tool}` lists it. The driver may be too old for this torch, or hidden by "
        "CUDA_VISIBLE_DEVICES or by the container"
    )


@functools.cache
def say_once(text: str) -> None:
    """Print a line on stderr, once a process."""
    print(text, file=sys.stderr)
