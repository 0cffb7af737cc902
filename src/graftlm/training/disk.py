"""Disk space for a run, checked before the first step.

A checkpoint has C bytes and the result R bytes. The run keeps k checkpoints and the best one in
addition. The disk holds at most

    max( (k + best + 1) C,  (k + best) C + R )        best = 1 if evaluations choose one, else 0

bytes: a new checkpoint is complete before the oldest is deleted, and the result is written at the
end. A run that saves fewer checkpoints than this needs less.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from graftlm.files import require_free_space
from graftlm.models.save import SMALL_FILES_BYTES
from graftlm.training.run import Run

__all__ = ["checkpoint_bytes", "require_space", "run_bytes"]

ADAM_MOMENTS = 2


def checkpoint_bytes(model: nn.Module) -> int:
    """Bytes of one checkpoint: the trainable parameters, and two moments of the same size."""
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return (1 + ADAM_MOMENTS) * trained


def run_bytes(run: Run) -> int:
    """The most bytes that the checkpoints and the result of ``run`` take at any time."""
    settings, steps = run.config.train, run.total_steps
    evaluations = steps // settings.eval_steps if settings.eval_steps and run.eval_examples else 0
    saves = 1 + evaluations + (steps // settings.save_steps if settings.save_steps else 0)
    kept = settings.keep_checkpoints + (evaluations > 0)
    one = checkpoint_bytes(run.model)
    while_saving = min(saves, kept + 1) * one
    at_the_end = min(saves, kept) * one + _result_bytes(run)
    return max(while_saving, at_the_end)


def require_space(run: Run) -> None:
    """Refuse a run that does not fit on the disk of its folder.

    The files that a resumed run has already written count as free space.

    Raises:
        ResourceError: the free space is too small; the message gives both sizes.
    """
    one = checkpoint_bytes(run.model)
    there = sum(file.stat().st_size for file in _written(run.out))
    need = max(run_bytes(run) - there, one) + SMALL_FILES_BYTES
    what = (
        f"Training, at {one / 1e9:.2f} GB a checkpoint (train.keep_checkpoints="
        f"{run.config.train.keep_checkpoints} and train.save_steps say how many),"
    )
    require_free_space(run.out, need, what)


def _result_bytes(run: Run) -> int:
    """Bytes of the adapter, or of the whole model; tied weights count once."""
    whole = run.config.method == "full"
    storages = {
        p.untyped_storage().data_ptr(): p.nbytes
        for p in run.model.parameters()
        if whole or p.requires_grad
    }
    return sum(storages.values())


def _written(out: Path) -> list[Path]:
    return [file for file in out.glob("checkpoints/step-*/*") if file.is_file()]
