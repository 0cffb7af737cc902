"""`graftlm train`: one training run, from a YAML file, flags, or both."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graftlm.cli import _settings as flags
from graftlm.cli._shared import JsonOption, program, say
from graftlm.errors import ArtifactError

if TYPE_CHECKING:
    from graftlm.config import RunConfig
    from graftlm.distributed.group import Group
    from graftlm.training import RunResult

__all__ = ["train"]


def train(
    config: Annotated[
        Path | None, typer.Argument(help="Settings in YAML.", show_default=False)
    ] = None,
    model: flags.Model = None,
    data: flags.Data = None,
    eval_data: flags.EvalData = None,
    method: flags.Method = None,
    device: flags.Device = None,
    memory: flags.Memory = None,
    out: flags.Out = None,
    steps: flags.Steps = None,
    epochs: flags.Epochs = None,
    learning_rate: flags.LearningRate = None,
    batch_size: flags.BatchSize = None,
    rank: flags.Rank = None,
    alpha: flags.Alpha = None,
    max_length: flags.MaxLength = None,
    seed: flags.Seed = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out; more --steps extend it.")
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes on this machine that share the work.", show_default=False
        ),
    ] = None,
    set_: flags.Set = None,
    as_json: JsonOption = False,
) -> None:
    """Train an adapter (or, with `--method full`, all weights).

    Example: `graftlm train --model gemma-3-270m --data rows.jsonl --steps 200 --out runs/first`

    All settings are listed in docs/settings.md. Ctrl-C writes a checkpoint;
    `graftlm train --resume --out RUN` goes on from it, bit for bit.

    In several processes: `--processes N`, or `torchrun --nproc-per-node N -m graftlm train …`, also
    on several machines (docs/distributed.md).
    """
    given = {
        "model": model,
        "data": data,
        "eval_data": eval_data,
        "method": method,
        "device": device,
        "memory": memory,
        "out": out,
        "steps": steps,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "rank": rank,
        "alpha": alpha,
        "max_length": max_length,
        "seed": seed,
    }
    if processes is not None and processes > 1:
        from graftlm.cli._processes import train_in

        words = flags.words_of(config, given, resume, set_ or [], as_json)
        raise typer.Exit(train_in(processes, ["train", *words]))

    from graftlm.distributed.group import joined

    with joined() as group:
        resume = resume or _restarted(group, config, given, set_ or [])
        settings = _settings(config, given, resume, set_ or [])

        from graftlm.config import most_bytes
        from graftlm.models.source import resolve
        from graftlm.system import return_freed_memory

        return_freed_memory()
        with group.main_first():  # it may convert a file for the others
            resolve(
                settings.model.name or "",
                trust_remote_code=settings.model.trust_remote_code,
                most_bytes=most_bytes(settings),
            )

        from graftlm.planning import run

        result = run(settings, resume=resume)
        page = group.from_main(lambda: report(Path(settings.out)))
        say(
            dataclasses.asdict(result),
            as_json,
            summary(result, settings.out, settings.train.export_to) + page,
        )
    if not result.finished:
        raise typer.Exit(1)


def _restarted(
    group: Group, config: Path | None, given: Mapping[str, Any], assignments: Sequence[str]
) -> bool:
    """Whether the launcher has started these processes again, and their run had begun."""
    from graftlm.system.processes import restarts

    if restarts()[0] == 0:
        return False
    from graftlm.config import load_run_config
    from graftlm.training.run_folder import begun_in_this_launch

    out = Path(load_run_config(config, flags.overrides(given, assignments)).out)
    return group.from_main(lambda: begun_in_this_launch(out))


def _settings(
    config: Path | None, given: Mapping[str, Any], resume: bool, assignments: Sequence[str]
) -> RunConfig:
    """The complete request: the file, or with ``--resume`` the run, and the flags."""
    from graftlm.config import RunConfig, load_run_config, recorded_config, require_complete

    if resume and config is None:
        saved = Path(given["out"] or RunConfig().out) / "config.yaml"
        if not saved.exists():
            raise ArtifactError(
                f"there is no run to resume: {saved} is missing. Name the folder of the run by "
                "--out, or leave out --resume to start one."
            )
        recorded_config(saved)  # an error is about the run's record, not the user's settings
        config = saved
    settings = load_run_config(config, flags.overrides(given, assignments))
    require_complete(settings)
    return settings


def report(out: Path) -> str:
    """Write the run's page; return a line with its path. A failure here is not an error."""
    from graftlm.cli._shared import stderr_console
    from graftlm.errors import GraftLMError
    from graftlm.report.run_page import write_run_page

    try:
        return f"\nreport: {write_run_page(out)}"
    except GraftLMError as error:
        stderr_console().print(f"the run is saved, but not its report: {error}", highlight=False)
        return ""


def summary(result: RunResult, out: str, export_to: Sequence[str] = ()) -> str:
    """The summary of a finished or stopped run in a few lines."""
    folder = shlex.quote(out)
    lines = [
        f"{result.method} on {result.model}: {result.steps} steps, "
        f"{result.supervised_tokens:,} supervised tokens in {result.wall_seconds:.0f} s "
        f"({result.tokens_per_second:.0f} tokens/s)",
        f"trained {result.trainable_parameters:,} of {result.total_parameters:,} parameters; "
        f"peak memory {result.peak_memory_bytes / 1e9:.2f} GB on {result.device}",
    ]
    if result.train_loss is not None:
        lines.append(f"training loss {result.train_loss:.4f}")
    if result.eval_loss_before is not None and result.eval_loss_after is not None:
        lines.append(f"held-out loss {result.eval_loss_before:.4f} → {result.eval_loss_after:.4f}")
    if result.finished:
        kept = f" (weights of step {result.kept_step}, the best evaluation)"
        lines.append(f"result: {result.adapter}{kept if result.kept_step != result.steps else ''}")
        exports = [f"export {folder} --to {form} --out {form}" for form in export_to]
        next_ = exports or [f"merge {folder} --out merged"] * (result.method != "full")
        lines += [f"next:   {program()} {words}" for words in next_]
    else:
        lines.append(f"stopped at step {result.steps}; {program()} train --resume --out {folder}")
    return "\n".join(lines)
