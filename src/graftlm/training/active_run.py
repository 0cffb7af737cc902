"""A run while it trains: what the loop changes, and what hooks are given."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from graftlm.distributed.engine import Engine
from graftlm.errors import ArtifactError
from graftlm.files import recover
from graftlm.training import checkpoint
from graftlm.training.checkpoint import TrainState
from graftlm.training.evaluation import mean_loss
from graftlm.training.measured import measure_rows
from graftlm.training.run import Run

if TYPE_CHECKING:
    from graftlm.training.hooks.hook import Hook

__all__ = ["ActiveRun"]

Point = Literal[
    "run_begins",
    "step_begins",
    "step_ends",
    "evaluation_ends",
    "checkpoint_begins",
    "checkpoint_written",
    "run_ends",
]


@dataclasses.dataclass(eq=False)
class ActiveRun:
    """A run under way.

    Attributes:
        run: the part that does not change.
        optimizer: the optimiser of ``parameters``.
        parameters: the trainable parameters.
        hooks: the hooks, in the order of their calls.
        engine: computes the passes of a step and adds up over the processes of the run.
        state: the counters.
        row: the metrics of the last step, as `metrics.jsonl` records them.
        end: ``finished`` once `stop` was called, ``paused`` once `pause` was.
        stop_requested: whether the user has asked to pause, as by Ctrl-C.
    """

    run: Run
    optimizer: torch.optim.Optimizer
    parameters: Sequence[nn.Parameter]
    hooks: Sequence[Hook]
    engine: Engine = dataclasses.field(default_factory=Engine)
    state: TrainState = dataclasses.field(default_factory=TrainState)
    row: dict[str, Any] = dataclasses.field(default_factory=dict)
    end: Literal["finished", "paused"] | None = None
    stop_requested: Callable[[], bool] = lambda: False
    measured: dict[str, dict[str, Tensor]] = dataclasses.field(default_factory=dict)
    saved_step: int | None = None
    """The step whose checkpoint this process has written or restored."""

    @property
    def over(self) -> bool:
        """Whether the run has no further step."""
        return (
            self.end is not None or self.state.finished or self.state.step >= self.run.total_steps
        )

    def stop(self) -> None:
        """End the run after this step and write its result, as after the last step."""
        self.end = self.end or "finished"

    def pause(self) -> None:
        """End the run after this step with a checkpoint only, so that it can be resumed."""
        self.end = self.end or "paused"

    def agree(self) -> None:
        """End the run in all processes if one of them ends it."""
        ends = self.engine.group.gather([self.end == "finished", self.end == "paused"])
        finished, paused = (any(column) for column in zip(*ends, strict=True))
        self.end = "finished" if finished else "paused" if paused else None

    def stop_now(self) -> bool:
        """Whether the user wants to stop in the middle of a step; several processes finish it."""
        return self.engine.group.processes.world_size == 1 and self.stop_requested()

    def tell(self, point: Point, *details: Any) -> None:
        """Call the method named ``point`` of each hook."""
        for hook in self.hooks:
            getattr(hook, point)(self, *details)

    @contextlib.contextmanager
    def closing_hooks(self) -> Iterator[None]:
        """Close all hooks at the end of the block; after an exception call `failed` first."""
        with contextlib.ExitStack() as closing:
            for hook in self.hooks:
                closing.callback(hook.closed, self)
            try:
                yield
            except BaseException as error:
                with contextlib.ExitStack() as telling:
                    for hook in self.hooks:
                        telling.callback(hook.failed, self, error)
                raise

    def begin(self, resume: bool) -> None:
        """Restore the last checkpoint, or start; then let the objective measure the rows.

        Args:
            resume: whether there is a checkpoint.

        Raises:
            ArtifactError: ``resume`` without a usable checkpoint.
        """
        if resume:
            folder = self.engine.group.from_main(self._recovered)
            if folder is None:
                raise ArtifactError(
                    f"{self.run.out} has no checkpoint to resume from: the run stopped before its "
                    "first. Remove the folder and start again."
                )
            self.state = checkpoint.restore(
                folder, self.run.model, self.optimizer, self.run.config.train.seed
            )
            self.run.require_same_order(self.state.row_order, self.state.step)
            self.state.row_order = checkpoint.ROW_ORDER
            self.saved_step = self.state.step
        self.measured = measure_rows(self.run, resume)

    def _recovered(self) -> Path | None:
        """Repair the run folder after a kill; return its last checkpoint."""
        for name in ("metrics.jsonl", "summary.json", "adapter", "model"):
            recover(self.run.out / name)
        return checkpoint.latest(self.run.out / "checkpoints")

    def micro_batches(self) -> list[Any]:
        """The micro-batches of the next step."""
        return self.run.micro_batches(self.state.step, self.measured["train"])

    def blank(self) -> Any:
        """A micro-batch for a pass that does not count."""
        return self.run.blank(self.state.step, self.measured["train"])

    def evaluate(self) -> float:
        """Measure the mean loss on the held-out rows and call the hooks."""
        run = self.run
        loss, _ = mean_loss(
            run.objective,
            run.model,
            run.eval_examples,
            run.config.train.batch_size,
            self.measured["eval"],
            self.engine,
        )
        self.tell("evaluation_ends", loss)
        return loss

    def save_checkpoint(self) -> None:
        """Write the checkpoint of this step, then delete the surplus checkpoints."""
        run, state, group = self.run, self.state, self.engine.group
        peak = int(group.most(run.placement.peak_memory()))
        state.peak_memory_bytes = max(state.peak_memory_bytes, peak)
        folder = run.out / "checkpoints" / f"step-{state.step}"
        random_states = checkpoint.of_all_ranks(group.gather_objects(run.placement.rng_state()))
        self.tell("checkpoint_begins")
        group.from_main(lambda: self._write_checkpoint(folder, random_states))
        self.saved_step = state.step
        self.tell("checkpoint_written", folder)

    def _write_checkpoint(self, folder: Path, random_states: dict[str, Tensor]) -> None:
        run, state = self.run, self.state
        if self.saved_step == state.step:
            checkpoint.save_counters(folder, state)  # its tensors are already on the disk
        else:
            checkpoint.save(
                folder,
                run.model,
                self.optimizer,
                state,
                random_states,
                run.config.model.name,
            )
        checkpoint.prune(folder.parent, run.config.train.keep_checkpoints, state.best_step)
