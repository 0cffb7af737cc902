"""The training loop: one optimiser step after another, and hooks around them.

Read `training/step.py` (one optimiser step) next, then the files in `docs/reading-path.md`.
Evaluation, checkpoints, metrics and the like are hooks: `training/hooks/`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from graftlm.distributed.choose import engine_of
from graftlm.training.active_run import ActiveRun
from graftlm.training.hooks import Callback, hooks_of
from graftlm.training.interrupt import stop_on_signal
from graftlm.training.optimizer import adamw, set_learning_rate
from graftlm.training.result import finish
from graftlm.training.run import Run, RunResult
from graftlm.training.step import Interrupted, train_step

__all__ = ["fit"]


def fit(
    run: Run,
    *,
    resume: bool = False,
    progress: bool = True,
    hooks: Sequence[Callback] = (),
) -> RunResult:
    """Train ``run.model`` and write the results into ``run.out``.

    Training ends after the last step, when a hook ends it, or on Ctrl-C.

    Args:
        run: the run.
        resume: continue from the last checkpoint.
        progress: draw the progress line on stderr.
        hooks: the user's hooks, see `graftlm.training.hooks.hook`.

    Raises:
        TrainingError: the loss or gradient stopped being finite; the last checkpoint remains.
        ArtifactError: ``resume`` without a usable checkpoint.
    """
    parameters = [p for p in run.model.parameters() if p.requires_grad]
    called = hooks_of(run, progress=progress, others=hooks)
    engine = engine_of(run.config.distributed)
    engine.prepare(run.model, parameters)
    active = ActiveRun(run, adamw(run, parameters), parameters, called, engine)
    with active.closing_hooks():
        active.begin(resume)
        run.model.train()
        with stop_on_signal() as active.stop_requested:
            active.tell("run_begins")
            while not active.over:
                active.tell("step_begins")
                if _step(active):
                    active.tell("step_ends")
                if active.stop_requested() and not active.over:
                    active.pause()
                active.agree()
        result = finish(active)
        active.tell("run_ends", result)
    return result


def _step(active: ActiveRun) -> bool:
    """Do one optimiser step and write its metrics to ``active.row``; false if the user stopped."""
    run, state = active.run, active.state
    started, rng = time.perf_counter(), run.placement.rng_state()
    set_learning_rate(run, active.optimizer, state.step)
    try:
        result = train_step(
            run.model,
            active.micro_batches(),
            active.optimizer,
            active.parameters,
            run.config.train.max_grad_norm,
            run.objective,
            active.stop_now,
            active.engine,
            active.blank,
        )
    except Interrupted:
        run.placement.set_rng_state(rng)
        active.pause()
        return False
    seconds = time.perf_counter() - started
    state.step += 1
    state.tokens += result.tokens
    state.supervised_tokens += result.supervised_tokens
    state.seconds += seconds
    active.row = {
        "step": state.step,
        **dataclasses.asdict(result),
        "learning_rate": active.optimizer.param_groups[0]["lr"],
        "tokens_per_second": result.tokens / seconds,
        "memory_bytes": run.placement.memory_now(),
    }
    return True
