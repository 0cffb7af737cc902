"""The end of a run: its last checkpoint, its result and its summary."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from graftlm.adapters.peft_format import save_adapter
from graftlm.exporting.model_card import CARD, card, write_card
from graftlm.files import write_json
from graftlm.models import save_model
from graftlm.training import checkpoint
from graftlm.training.active_run import ActiveRun
from graftlm.training.hooks.metrics_file import read_metrics
from graftlm.training.run import RunResult
from graftlm.training.run_folder import result_folder

__all__ = ["finish"]


def finish(active: ActiveRun) -> RunResult:
    """Save the last checkpoint and, unless the run is paused, the result and its evaluation."""
    run, state = active.run, active.state
    state.finished = active.end != "paused"
    active.save_checkpoint()
    eval_after = None
    if state.finished:
        if state.best_step is not None and state.best_step != state.step:
            best = run.out / "checkpoints" / f"step-{state.best_step}"
            checkpoint.restore(best, run.model, active.optimizer, run.config.train.seed)
        if run.eval_examples:
            eval_after = active.evaluate()
    peak = int(active.engine.group.most(run.placement.peak_memory()))
    return active.engine.group.from_main(lambda: _written(active, eval_after, peak))


def _written(active: ActiveRun, eval_after: float | None, peak: int) -> RunResult:
    """Write the result, unless the run is paused, and the summary."""
    run, state, folder = active.run, active.state, None
    if state.finished:
        folder = result_folder(run.out, run.config.method)
        if run.config.method == "full":
            save_model(run.model, run.tokenizer, folder, replace=True)
        else:
            save_adapter(
                run.model, folder, base_name=run.config.model.name, tokenizer=run.tokenizer
            )
    summary = RunResult(
        method=run.config.method,
        model=run.config.model.name,
        device=run.placement.name,
        steps=state.step,
        tokens=state.tokens,
        supervised_tokens=state.supervised_tokens,
        tokens_per_second=state.tokens / state.seconds if state.seconds else 0.0,
        wall_seconds=state.seconds,
        peak_memory_bytes=max(state.peak_memory_bytes, peak),
        trainable_parameters=sum(p.numel() for p in active.parameters),
        total_parameters=run.total_parameters,
        train_loss=_recent_loss(run.out),
        eval_loss_before=state.eval_loss_before,
        eval_loss_after=eval_after,
        adapter=str(folder) if folder else None,
        finished=state.finished,
        kept_step=(state.best_step or state.step) if state.finished else None,
        processes=run.placement.world_size,
    )
    write_json(run.out / "summary.json", dataclasses.asdict(summary))
    if folder is not None:
        form = "full" if run.config.method == "full" else "adapter"
        (folder / CARD).unlink(missing_ok=True)  # of an earlier end of this run
        write_card(folder, card(run.out, run.config.model.name, form))
    return summary


def _recent_loss(out: Path, steps: int = 10) -> float | None:
    losses = [row["loss"] for row in read_metrics(out / "metrics.jsonl")[-steps:]]
    return sum(losses) / len(losses) if losses else None
