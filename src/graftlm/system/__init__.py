"""Facts about this machine: current and peak memory, processor features, versions.

All figures are bytes. "Resident" memory is the process's pages in memory, with file-backed ones, as
the operating system counts them. `top` shows this figure, and the system kills a process by it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

__all__ = [
    "RETURNED_FROM",
    "available_memory",
    "cpu_flags",
    "fast_bfloat16",
    "long_lived_objects_set_aside",
    "peak_resident",
    "release_freed_memory",
    "resident",
    "return_freed_memory",
    "trim_heap",
    "versions",
]

_CGROUP_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


RETURNED_FROM = 1 << 20
"""After `return_freed_memory`, freed blocks of at least this size are returned to the system."""

_returns_freed_memory = False

_SET_ASIDE_BY_OTHERS = 1000
"""More frozen objects than Python has by default; `gc.freeze` freezes all existing objects."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""


def resident() -> int:
    """Resident memory of this process now."""
    return int(psutil.Process().memory_info().rss)


def peak_resident() -> int:
    """The peak resident memory of this process since its start.

    This reads /proc if it exists, not `getrusage`: on Linux the latter survives `exec`, so a
    process started by a larger one would report the peak of its parent.
    """
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if found:
        return int(found.group(1)) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


@functools.cache
def return_freed_memory() -> None:
    """Make the process return freed memory. Call it before torch allocates anything.

    glibc returns a freed block to the system only above a threshold, which it raises at run time.
    The blocks of a training step (up to 32 MB each) then fragment the heap, and a process holds up
    to 1.5 times the memory of its tensors. This function fixes the threshold. At 2 MB full
    fine-tuning held a tenth more than its tensors, at 8 MB QLoRA a fifth more, which a plan cannot
    predict. At half a megabyte steps are slower than at one. The function also makes torch request
    huge pages: a large block then needs one page fault for 2 MB instead of 512. It does nothing on
    other systems, or for settings that the user has made.
    """
    global _returns_freed_memory
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    user_decided = any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "LD_PRELOAD"))
    if sys.platform != "linux" or user_decided:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from musl
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, RETURNED_FROM)
        mallopt(_M_TRIM_THRESHOLD, RETURNED_FROM)
        _returns_freed_memory = True


def release_freed_memory() -> None:
    """Return small freed blocks to the system, which the C library otherwise keeps."""
    gc.collect()
    _trim()


@contextlib.contextmanager
def long_lived_objects_set_aside() -> Iterator[None]:
    """Exclude the existing objects from Python's garbage collection during this context.

    A training step makes about ten thousand objects, so every few steps Python searches all objects
    for cycles. That is half a million objects of the libraries and the model, searched on one
    thread while the others wait. It took 3 % of a step (Gemma, two cores). If other code has
    frozen objects already, this function does nothing, because Python has only one set of frozen
    objects. (A few may be in it by default.)
    """
    if gc.get_freeze_count() > _SET_ASIDE_BY_OTHERS:
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def trim_heap() -> None:
    """Return the free pages between used blocks to the system. This takes about 10 ms.

    A training step fills its heap with blocks that it keeps and blocks that it frees. The holes do
    not fit the next blocks, so a process held 100 MB more than its tensors (a Qwen 2 with 96
    million parameters). With a trim between two phases it held 10 MB more. Without
    `return_freed_memory` the heap also contains blocks of 32 MB, whose pages the system would have
    to provide anew each time; then this function does nothing.
    """
    if _returns_freed_memory:
        _trim()


def _trim() -> None:
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Any:
    """The `malloc_trim` of glibc, if it exists."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def available_memory() -> int:
    """Memory available to new allocations without swapping, within the limits of a container."""
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
    """Whether this CPU multiplies bfloat16 in hardware; if not, it is slower than float32."""
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
