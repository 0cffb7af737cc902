"""What this machine has: memory now, memory at its peak, processor features, versions.

All figures are bytes. "Resident" is what the operating system counts as the process's own pages in
memory, file-backed ones included: the figure that `top` shows and that gets a process killed.
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import resource
import sys
from pathlib import Path

import psutil

__all__ = [
    "available_memory",
    "cpu_flags",
    "fast_bfloat16",
    "peak_resident",
    "resident",
    "versions",
]

_CGROUP_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def resident() -> int:
    """Resident memory of this process now."""
    return int(psutil.Process().memory_info().rss)


def peak_resident() -> int:
    """The highest resident memory this process has had since it started."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def available_memory() -> int:
    """Memory a new allocation can have without swapping, container limits honoured."""
    available = int(psutil.virtual_memory().available)
    for limit_file, usage_file in _CGROUP_LIMITS:
        try:
            limit, usage = Path(limit_file).read_text(), Path(usage_file).read_text()
        except OSError:
            continue  # not this cgroup version, or not Linux
        if limit.strip() != "max":
            available = min(available, max(0, int(limit) - int(usage)))
    return available


def cpu_flags() -> frozenset[str]:
    """Instruction-set flags as Linux names them; empty on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


@functools.cache
def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; elsewhere it is slower than float32."""
    return not cpu_flags().isdisjoint({"amx_bf16", "avx512_bf16", "bf16"})


def versions() -> dict[str, str]:
    """Versions of everything that can change a result."""
    from graftlm import __version__

    packages = ("torch", "transformers", "tokenizers", "safetensors")
    return {
        "graftlm": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    } | {package: importlib.metadata.version(package) for package in packages}
