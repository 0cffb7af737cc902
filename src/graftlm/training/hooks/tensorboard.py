"""Writes TensorBoard's event files into the run folder if `train.tracking` is `tensorboard`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graftlm.errors import ResourceError
from graftlm.training.active_run import ActiveRun
from graftlm.training.hooks.hook import Hook

__all__ = ["TensorBoard", "require_tensorboard"]


class TensorBoard(Hook):
    """Writes each number of a step's row as a scalar.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None

    def run_begins(self, active: ActiveRun) -> None:
        """Open the event file and hide the steps after the one where the run continues."""
        first = active.state.step + 1
        self._writer = require_tensorboard()(str(self.folder / "tensorboard"), purge_step=first)

    def step_ends(self, active: ActiveRun) -> None:
        """Write the row."""
        for name, value in active.row.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, active.row["step"])

    def closed(self, active: ActiveRun) -> None:
        """Flush and close the file."""
        if self._writer is not None:
            self._writer.close()


def require_tensorboard() -> Any:
    """The class that writes TensorBoard's files.

    Raises:
        ResourceError: the package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ResourceError(
            "train.tracking=tensorboard needs the tensorboard package: "
            "pip install 'graftlm[tensorboard]'"
        ) from error
    return SummaryWriter
