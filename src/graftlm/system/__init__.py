"""What this machine has: memory now, memory at its peak, processor features, versions.

All figures are bytes. "Resident" is what the operating system counts as the process's own pages in
memory, file-backed ones included: the figure that `top` shows and that gets a process killed.
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
"""Blocks of this size go back to the system when freed, once `return_freed_memory` was called."""

_returns_freed_memory = False

_SET_ASIDE_BY_OTHERS = 1000
"""More objects than Python sets aside of itself; `gc.freeze` sets aside all there are."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""


def resident() -> int:
    """Resident memory of this process now."""
    return int(psutil.Process().memory_info().rss)


def peak_resident() -> int:
    """The highest resident memory this process has had since it started.

    Not `getrusage` where /proc has it: on Linux that figure survives `exec`, so that a process
    started by a larger one would report its parent's.
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
    """Make memory follow the tensors that are alive: call it before torch allocates anything.

    glibc raises, while it runs, the size from which a block is given back when freed; from then on
    the blocks of a training step (up to 32 MB each) crumble its heap, and a process holds up to
    1.5 times the memory of its tensors. Here that size is fixed. At 2 MB full fine-tuning held a
    tenth more than its tensors, at 8 MB QLoRA a fifth, which no plan can foresee; at half a
    megabyte steps are slower than at one. torch asks for huge pages when told to: what is larger
    than one comes back by one page fault for 2 MB instead of 512. Nothing happens on other systems,
    or where the user has decided.
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
    """Give back what has been freed in small pieces, which the C library keeps for later."""
    gc.collect()
    _trim()


@contextlib.contextmanager
def long_lived_objects_set_aside() -> Iterator[None]:
    """Spare Python's garbage collector what is alive already, while this context lasts.

    A training step makes some ten thousand objects, so that Python looks every few steps through
    all there are for cycles: half a million of the libraries and the model, on one thread, while
    the others wait. That took 3 % of a step (Gemma, two cores). What is alive now is not looked
    through until the end. What somebody else has set aside stays so: Python has one place for all
    such objects, so nothing is added to it then. (A few may be there by themselves.)
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
    """Give back the whole pages that are free between blocks in use: some 10 ms.

    A training step fills its heap with what it keeps and what it frees again. The holes, of other
    sizes than what comes next, made a process hold 100 MB more than its tensors (a Qwen 2 of 96
    million parameters); trimmed where one phase follows another, 10. Without `return_freed_memory`
    blocks of 32 MB are in the heap too, and the system would fill them anew each time: left alone.
    """
    if _returns_freed_memory:
        _trim()


def _trim() -> None:
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Any:
    """The `malloc_trim` of glibc, where there is one."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


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
