"""One run of a comparison in a separate process, so that its peak memory is measured alone.

    python -m graftlm.report.compare.worker

It reads one line of JSON from stdin. It writes its measurements to the run folder and one JSON
object to stdout: ``{}``, or ``error`` and ``exit_code``. The exit code is also 0 for a run that was
stopped and left a checkpoint. If the parent process ends, the run stops with a checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

__all__ = ["do_job"]


def do_job(request: dict[str, Any], progress: bool = False) -> None:
    """Train, or resume training, unless that is done; then measure.

    Args:
        request: ``config`` (a `RunConfig` as a tree), ``train`` (``new``, ``resume`` or ``done``),
            ``measure`` (``outside``, ``score_rows``, ``plan``).
        progress: draw the progress line on stderr.
    """
    from graftlm.config import RunConfig
    from graftlm.files import write_json
    from graftlm.planning import run
    from graftlm.report.compare.measure import measure, scored_rows
    from graftlm.report.compare.variants import MEASURED
    from graftlm.report.run_page import write_run_page

    config = RunConfig.model_validate(request["config"])
    asked = request["measure"]
    if asked["score_rows"]:
        scored_rows(config, 1)  # refuse it before the training, not after it
    if request["train"] != "done":
        result = run(config, resume=request["train"] == "resume", progress=progress)
        write_run_page(Path(config.out))
        if not result.finished:
            return
    found = measure(config, Path(asked["outside"]), asked["score_rows"])
    if asked["plan"]:
        found["planned"] = planned_memory(config)
        write_run_page(Path(config.out), found["planned"])
    write_json(Path(config.out) / MEASURED, {"asked": asked, **found})


def planned_memory(config: Any) -> dict[str, int] | None:
    """The components of the peak in the plan, in bytes; ``None`` if it cannot be planned."""
    from graftlm.config import recorded_config
    from graftlm.errors import GraftLMError
    from graftlm.planning import make_plan, row_lengths

    try:
        ran_on = recorded_config(Path(config.out) / "config.yaml").device
        plan = make_plan(
            config,
            device=ran_on.partition(":")[0],
            methods=(config.method,),
            lengths=row_lengths(config),
        )
    except GraftLMError as error:
        print(f"no plan of the memory: {error}", file=sys.stderr)
        return None
    wanted = config.train.gradient_checkpointing
    option = next(o for o in plan.options if o.gradient_checkpointing == wanted)
    return option.components


def _main() -> int:
    from graftlm.errors import GraftLMError
    from graftlm.system import return_freed_memory
    from graftlm.system.child import end_with_parent

    return_freed_memory()
    try:
        request = json.loads(sys.stdin.readline())
        # As Ctrl-C: training writes a checkpoint, everything else ends at once.
        end_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
        do_job(request, progress=sys.stderr.isatty())
    except GraftLMError as error:
        print(json.dumps({"error": str(error), "exit_code": error.exit_code}))
        return error.exit_code
    print("{}")
    return 0


if __name__ == "__main__":
    sys.exit(_main())
