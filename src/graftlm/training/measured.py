"""The objective's measurements of the rows before the first step, stored in the run folder.

    measured.safetensors        {"train/NAME": …, "eval/NAME": …}, absent if there are none

A resumed run reads this file, because its model has changed since the measurement.
"""

from __future__ import annotations

import safetensors.torch
from torch import Tensor

from graftlm.errors import ArtifactError, TrainingError
from graftlm.files import atomic_write
from graftlm.models.probing import being_probed
from graftlm.training.run import Run

__all__ = ["measure_rows"]


def measure_rows(run: Run, resume: bool) -> dict[str, dict[str, Tensor]]:
    """The measurements of the training rows (``train``) and of the held-out rows (``eval``).

    Raises:
        TrainingError: a measurement does not have exactly one entry per row.
        ArtifactError: the file of a resumed run cannot be read.
    """
    path = run.out / "measured.safetensors"
    rows = {"train": run.examples, "eval": run.eval_examples}
    if resume:
        found: dict[str, dict[str, Tensor]] = {part: {} for part in rows}
        try:
            stored = safetensors.torch.load_file(path) if path.exists() else {}
        except (OSError, safetensors.SafetensorError) as error:
            raise ArtifactError(
                f"{path} cannot be read: {error}. It holds what was measured before the first "
                "step, so the run cannot go on: start it again in another folder."
            ) from error
        for key, values in stored.items():
            part, _, name = key.partition("/")
            found[part][name] = values
        return found
    with being_probed(run.model):
        found = {
            part: run.objective.measure(run.model, these) if len(these) else {}
            for part, these in rows.items()
        }
    for part, known in found.items():
        for name, tensor in known.items():
            if len(tensor) != len(rows[part]):
                raise TrainingError(
                    f"the objective {run.objective.name!r} measured {name!r} with {len(tensor)} "
                    f"entries; expected one for each of the {len(rows[part])} rows"
                )
    if not run.placement.is_main:
        return found
    flat = {f"{part}/{name}": t for part, known in found.items() for name, t in known.items()}
    if flat:
        with atomic_write(path) as temporary:
            safetensors.torch.save_file(flat, temporary)
    else:
        path.unlink(missing_ok=True)  # of a run that ended before its first checkpoint
    return found
