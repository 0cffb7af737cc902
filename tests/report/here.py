"""Doing the runs of a comparison in the test's own process: starting another takes seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from graftlm.report.compare.worker import do_job


class Here:
    """Does jobs in this process, without the plan, and notes how each began."""

    def __init__(self) -> None:
        self.began: list[str] = []

    def __call__(self, request: dict[str, Any], name: str) -> None:
        self.began.append(request["train"])
        # The plan measures the framework in a process of its own: seconds.
        quick = {**request["measure"], "plan": False}
        do_job({**request, "measure": quick})
        path = Path(request["config"]["out"]) / "measured.json"
        if path.exists():  # not after a stop
            found = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps({**found, "asked": request["measure"]}), encoding="utf-8")
