"""What the page says about this machine."""

from __future__ import annotations

import platform
import shutil
import time
from typing import Any

import psutil

from graftlm import __version__
from graftlm.studio.place import BUILT_IN, Place
from graftlm.system import available_memory

__all__ = ["facts"]


def facts(place: Place) -> dict[str, Any]:
    """Memory, disk, cores and models. Accelerators are for `graftlm plan`, which loads torch."""
    return {
        "version": __version__,
        "system": platform.system(),
        "cores": psutil.cpu_count(logical=True),
        "memory": psutil.virtual_memory().total,
        "memory_free": available_memory(),
        "disk_free": shutil.disk_usage(place.runs).free,
        "runs": str(place.runs),
        "models": [*BUILT_IN, *place.local_models()],
        "server_memory": psutil.Process().memory_info().rss,
        "now": time.time(),
    }
