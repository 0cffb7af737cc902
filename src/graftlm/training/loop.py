"""The training loop: which rows go into which step, when to measure, when to save, when to stop.

The reader's way down from here: `train/step.py` (one optimiser step) → `layers/lora_linear.py` →
`layers/nf4_linear.py` → `nf4/dequantize.py`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graftlm.adapters.peft_format import save_adapter
from graftlm.errors import ArtifactError
from graftlm.files import write_json
from graftlm.models import save_model
from graftlm.system import long_lived_objects_set_aside
from graftlm.training import checkpoint
from graftlm.training.checkpoint import TrainState
from graftlm.training.evaluation import evaluate
from graftlm.training.interrupt import stop_on_signal
from graftlm.training.metrics import MetricsLog, read_metrics
from graftlm.training.progress import progress_bar
from graftlm.training.run import Run, RunResult
from graftlm.training.run_folder import result_folder
from graftlm.training.schedule import learning_rate_factor
from graftlm.training.step import Interrupted, train_step

__all__ = ["fit"]


def fit(
    run: Run, *, resume: bool = False, extended: bool = False, progress: bool = True
) -> RunResult:
    """Train ``run.model`` to the end, or until Ctrl-C; leave results in ``run.out``.

    Args:
        run: what is trained, and how.
        resume: go on from the last checkpoint.
        extended: the run had finished, and has more steps now.
        progress: draw the progress line on stderr.

    Raises:
        TrainingError: the loss or gradient stopped being finite; the last checkpoint stands.
        ArtifactError: ``resume`` without a usable checkpoint.
    """
    parameters = [p for p in run.model.parameters() if p.requires_grad]
    optimizer = _optimizer(run, parameters)
    state = _resume(run, optimizer) if resume else TrainState()
    if extended:
        state.finished, state.stale_evaluations = False, 0
    run.model.train()
    with (
        MetricsLog(run.out, state.step, run.config.train.tensorboard) as log,
        progress_bar(run.total_steps, state.step, progress) as show,
        stop_on_signal() as stop_requested,
        long_lived_objects_set_aside(),
    ):
        if run.eval_examples and state.eval_loss_before is None:
            state.eval_loss_before = _evaluate(run)
        stopped = _steps(run, optimizer, parameters, state, log, show, stop_requested)
    return _finish(run, optimizer, state, stopped)


def _steps(
    run: Run,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    state: TrainState,
    log: MetricsLog,
    show: Callable[[dict[str, Any]], None],
    stop_requested: Callable[[], bool],
) -> bool:
    """Run the remaining steps; return whether the user stopped them."""
    settings = run.config.train
    while state.step < run.total_steps and not state.finished:
        started, rng = time.perf_counter(), run.placement.rng_state()
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * learning_rate_factor(
                state.step, run.total_steps, settings.warmup_ratio, settings.schedule
            )
        try:
            result = train_step(
                run.model,
                run.micro_batches(state.step),
                optimizer,
                parameters,
                settings.max_grad_norm,
                settings.loss_tolerance,
                stop_requested,
            )
        except Interrupted:
            run.placement.set_rng_state(rng)
            return True
        seconds = time.perf_counter() - started
        state.step += 1
        state.tokens += result.tokens
        state.supervised_tokens += result.supervised_tokens
        state.seconds += seconds
        row = {
            "step": state.step,
            **dataclasses.asdict(result),
            "learning_rate": optimizer.param_groups[0]["lr"],
            "tokens_per_second": result.tokens / seconds,
            "memory_bytes": run.placement.memory_now(),
        }
        if settings.eval_steps and run.eval_examples and state.step % settings.eval_steps == 0:
            row["eval_loss"] = _evaluate(run)
            _note_evaluation(run, optimizer, state, row["eval_loss"])
        log.write(row)
        show(row)
        if settings.save_steps and state.step % settings.save_steps == 0:
            _save_checkpoint(run, optimizer, state)
        patience = settings.early_stopping_patience
        if patience and state.stale_evaluations >= patience:
            break
        if stop_requested() and state.step < run.total_steps:
            return True
    return False


def _note_evaluation(
    run: Run, optimizer: torch.optim.Optimizer, state: TrainState, loss: float
) -> None:
    """Remember the best evaluation so far, and keep its checkpoint."""
    if state.best_eval_loss is None or loss < state.best_eval_loss:
        state.best_eval_loss, state.best_step, state.stale_evaluations = loss, state.step, 0
        _save_checkpoint(run, optimizer, state)
    else:
        state.stale_evaluations += 1


def _finish(
    run: Run, optimizer: torch.optim.Optimizer, state: TrainState, stopped: bool
) -> RunResult:
    """Save the last checkpoint; unless stopped early, also the result and its evaluation."""
    state.finished = not stopped
    _save_checkpoint(run, optimizer, state)
    result, eval_after = None, None
    if not stopped:
        if state.best_step is not None and state.best_step != state.step:
            best = run.out / "checkpoints" / f"step-{state.best_step}"
            checkpoint.restore(best, run.model, optimizer)
        if run.eval_examples:
            eval_after = _evaluate(run)
        result = result_folder(run.out, run.config.method)
        if run.config.method == "full":
            save_model(run.model, run.tokenizer, result, replace=True)
        else:
            save_adapter(
                run.model, result, base_name=run.config.model.name, tokenizer=run.tokenizer
            )
    summary = RunResult(
        method=run.config.method,
        model=run.config.model.name,
        steps=state.step,
        tokens=state.tokens,
        supervised_tokens=state.supervised_tokens,
        tokens_per_second=state.tokens / state.seconds if state.seconds else 0.0,
        wall_seconds=state.seconds,
        peak_memory_bytes=max(state.peak_memory_bytes, run.placement.peak_memory()),
        trainable_parameters=sum(p.numel() for p in run.model.parameters() if p.requires_grad),
        total_parameters=run.total_parameters,
        train_loss=_recent_loss(run.out),
        eval_loss_before=state.eval_loss_before,
        eval_loss_after=eval_after,
        adapter=str(result) if result else None,
        finished=not stopped,
        kept_step=None if stopped else state.best_step or state.step,
    )
    write_json(run.out / "summary.json", dataclasses.asdict(summary))
    return summary


def _optimizer(run: Run, parameters: Sequence[nn.Parameter]) -> torch.optim.AdamW:
    """AdamW; biases and norms (one-dimensional) are not decayed."""
    settings = run.config.train
    rate = settings.learning_rate
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": chosen, "weight_decay": decay, "peak_lr": rate}
        for chosen, decay in ((matrices, settings.weight_decay), (vectors, 0.0))
        if chosen
    ]
    betas = (settings.adam_beta1, settings.adam_beta2)
    return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=settings.adam_epsilon, fused=True)


def _resume(run: Run, optimizer: torch.optim.Optimizer) -> TrainState:
    folder = checkpoint.latest(run.out / "checkpoints")
    if folder is None:
        raise ArtifactError(
            f"{run.out} has no checkpoint to resume from: the run stopped before its first. "
            "Remove the folder and start again."
        )
    return checkpoint.restore(folder, run.model, optimizer)


def _save_checkpoint(run: Run, optimizer: torch.optim.Optimizer, state: TrainState) -> None:
    state.peak_memory_bytes = max(state.peak_memory_bytes, run.placement.peak_memory())
    folder = run.out / "checkpoints"
    checkpoint.save(
        folder / f"step-{state.step}",
        run.model,
        optimizer,
        state,
        run.placement.rng_state(),
        run.config.model.name,
    )
    checkpoint.prune(folder, run.config.train.keep_checkpoints, state.best_step)


def _evaluate(run: Run) -> float:
    settings = run.config.train
    sizes = (settings.batch_size, settings.micro_batch_tokens)
    return evaluate(run.model, run.eval_examples, *sizes).loss


def _recent_loss(out: Path, steps: int = 10) -> float | None:
    losses = [row["loss"] for row in read_metrics(out / "metrics.jsonl")[-steps:]]
    return sum(losses) / len(losses) if losses else None
