"""Sends the metrics of a run to the tracker that `train.tracking` names.

A tracker is one class of three calls: begin, log, end. Where to send, each package reads from its
own environment (`WANDB_MODE`, `WANDB_PROJECT`, `MLFLOW_TRACKING_URI`, `TRACKIO_DIR`, …). A run that
is resumed goes on under the id that its folder remembers, in `tracking.json`.
"""

from __future__ import annotations

import abc
import importlib
import json
import os
import secrets
from typing import Any

from graftlm.errors import ResourceError
from graftlm.files import write_json
from graftlm.training.active_run import ActiveRun
from graftlm.training.hooks.hook import Hook
from graftlm.training.hooks.tensorboard import TensorBoard, require_tensorboard
from graftlm.training.run import Run

__all__ = ["require_tracker", "tracker"]

FILE = "tracking.json"
PROJECT = "graftlm"


class _Tracker(Hook, abc.ABC):
    """A tracker behind a package of the name ``package``.

    Args:
        run: the run; its folder's name is the name of the run.
    """

    package: str

    def __init__(self, run: Run) -> None:
        self.run = run
        self.library: Any = None
        self.status = "failed"

    @abc.abstractmethod
    def begin(self, id: str | None, settings: dict[str, Any]) -> str:
        """Begin the run, or go on with ``id``; the id under which it can be resumed."""

    @abc.abstractmethod
    def log(self, numbers: dict[str, float], step: int) -> None:
        """Send the numbers of a step."""

    @abc.abstractmethod
    def end(self, finished: bool) -> None:
        """End the run, with or without success."""

    def run_begins(self, active: ActiveRun) -> None:
        """Begin, or go on if steps are done."""
        self.library = require_tracker(self.package)
        file = self.run.out / FILE
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        id = known.get(self.package) if active.state.step else None
        id = self.begin(id, _flat(self.run.config.model_dump(mode="json")))
        write_json(file, {**known, self.package: id})

    def step_ends(self, active: ActiveRun) -> None:
        """Send the row of `metrics.jsonl`."""
        numbers = {
            name: float(value)
            for name, value in active.row.items()
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
        }
        self.log(numbers, int(active.row["step"]))

    def run_ends(self, active: ActiveRun, result: Any) -> None:
        """The run finished or paused."""
        self.status = "finished"

    def closed(self, active: ActiveRun) -> None:
        """End the tracker's run."""
        if self.library is not None:
            self.end(self.status == "finished")


class _WandB(_Tracker):
    """Weights & Biases."""

    package = "wandb"

    def begin(self, id: str | None, settings: dict[str, Any]) -> str:
        self.sent = self.library.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=self.run.out.name,
            dir=str(self.run.out),
            config=settings,
            id=id or secrets.token_hex(6),
            resume="allow",
        )
        return str(self.sent.id)

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.sent.log(numbers, step=step)

    def end(self, finished: bool) -> None:
        self.sent.finish(exit_code=0 if finished else 1)


class _MLflow(_Tracker):
    """MLflow."""

    package = "mlflow"

    def begin(self, id: str | None, settings: dict[str, Any]) -> str:
        if id is None and "MLFLOW_EXPERIMENT_NAME" not in os.environ:
            self.library.set_experiment(PROJECT)
        started = self.library.start_run(run_id=id, run_name=self.run.out.name)
        if id is None:
            # MLflow refuses a parameter that changes, and one longer than 6,000 characters.
            self.library.log_params({name: str(value)[:6000] for name, value in settings.items()})
        return str(started.info.run_id)

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.library.log_metrics(numbers, step=step)

    def end(self, finished: bool) -> None:
        self.library.end_run(status="FINISHED" if finished else "FAILED")


class _Trackio(_Tracker):
    """Trackio; a run is resumed by its name."""

    package = "trackio"

    def begin(self, id: str | None, settings: dict[str, Any]) -> str:
        name = id or f"{self.run.out.name}-{secrets.token_hex(3)}"
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self.library.init(project=project, name=name, config=settings, resume="allow")
        return name

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.library.log(numbers, step=step)

    def end(self, finished: bool) -> None:
        self.library.finish()


_TRACKERS: dict[str, type[_Tracker]] = {cls.package: cls for cls in (_WandB, _MLflow, _Trackio)}


def tracker(run: Run) -> Hook:
    """The hook that the run's settings name; they name one."""
    name = run.config.train.tracking
    return TensorBoard(run.out) if name == "tensorboard" else _TRACKERS[name](run)


def require_tracker(name: str) -> Any:
    """The package behind ``train.tracking``; ``None`` for ``none``.

    Raises:
        ResourceError: it is not installed.
    """
    if name == "none":
        return None
    if name == "tensorboard":
        return require_tensorboard()
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ResourceError(
            f"train.tracking={name} needs the {name} package: pip install 'graftlm[{name}]'"
        ) from error


def _flat(tree: dict[str, Any], before: str = "") -> dict[str, Any]:
    """``section.name``: value."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[before + name] = value
    return flat
