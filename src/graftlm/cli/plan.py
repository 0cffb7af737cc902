"""`graftlm plan`: whether a run fits, and whether to use LoRA or QLoRA."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graftlm.cli._shared import JsonOption, ModelArgument, say, stderr_console

if TYPE_CHECKING:
    from graftlm.config import RunConfig
    from graftlm.planning import Option, Plan, Verified

__all__ = ["plan"]

MEMORY_OF = (
    "Memory is that of a process that runs `graftlm train`, or `graftlm.run` and nothing else."
)
_HIDE = {"show_default": False}
_COLUMNS = (
    "method",
    "recompute",
    "embeddings",
    "rows × length",
    "peak",
    "time a step",
    "fits",
)


def plan(
    model: ModelArgument,
    data: Annotated[str | None, typer.Option(help="Rows: plan for their lengths.", **_HIDE)] = None,
    memory: Annotated[
        str | None, typer.Option(help="The limit, such as 6GB. Default: what is free.", **_HIDE)
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu or cuda; it need not be here. auto: what is here.")
    ] = "auto",
    card: Annotated[
        str | None,
        typer.Option(help="A GPU by name, with its data sheet: T4, A100, …", **_HIDE),
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens a row.", **_HIDE)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a batch.", **_HIDE)] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the adapters.", **_HIDE)] = None,
    methods: Annotated[str, typer.Option(help="Which to consider.")] = "full,lora,qlora",
    processes: Annotated[
        int,
        typer.Option(
            min=1, max=4096, help="Processes that train together; memory is that of each."
        ),
    ] = 1,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any setting, as for `graftlm train`. Repeatable.", **_HIDE),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also run what is recommended, and compare.")
    ] = False,
    verify_all: Annotated[
        bool, typer.Option("--verify-all", help="Also run every setting that fits, and compare.")
    ] = False,
    time_limit: Annotated[
        float, typer.Option(help="Seconds after which the plan gives up, trial runs apart.")
    ] = 600.0,
    as_json: JsonOption = False,
) -> None:
    """Say what training would take, before it starts, and which method to use.

    Example: `graftlm plan gemma-3-270m --data rows.jsonl --memory 4GB`

    Traces one real training step of the model without computing it, so it works for models far
    larger than this machine. Nothing but the model's config and the data is read.
    Exits with 1 if a setting that --verify runs fails.
    """
    from graftlm.config import load_run_config, parse_override

    flags: list[tuple[list[str], Any]] = [
        (path, value)
        for path, value in (
            (["model", "name"], model),
            (["data", "train"], data),
            (["data", "max_length"], max_length),
            (["train", "batch_size"], batch_size),
            (["lora", "rank"], rank),
        )
        if value is not None
    ]
    config = load_run_config(None, flags + [parse_override(text) for text in set_ or []])

    from graftlm.api.plan import plan as make_plan
    from graftlm.system.heartbeat import heartbeat

    console = stderr_console()

    def beat(text: str) -> None:
        if not console.is_terminal:  # there, the status is seen
            console.print(f"planning: {text}", markup=False, highlight=False)

    with console.status("planning") as status, heartbeat(beat) as note:

        def say_progress(text: str) -> None:
            status.update(f"planning: {text}")
            note(text)
            if not console.is_terminal and "latest" in text:
                console.print(text)

        found = make_plan(
            config,
            memory=memory,
            device=device,
            card=card,
            methods=[word.strip() for word in methods.split(",")],  # type: ignore[misc]
            verify="all" if verify_all else "recommended" if verify else None,
            progress=say_progress,
            processes=processes,
            time_limit=time_limit,
        )
    if as_json:
        ranks = _rank_probe(config)
        more = _probe(config, found) | ({"rank_probe": ranks} if ranks else {})
        say(found.to_json() | more, True, "")
    else:
        _print(found)
        if probe := _probe(config, found).get("probe"):
            seconds = probe["seconds"]
            time = "" if seconds is None else f", about {seconds:.2g} s"
            print(
                f"\ntrain.learning_rate=auto adds at most {probe['steps']} steps{time}, and "
                f"{probe['passes']} passes over {probe['rows']} rows to judge on"
            )
        if ranks := _rank_probe(config):
            print(
                f"\nlora.rank=auto adds at most {ranks['steps']} steps, and {ranks['passes']} "
                f"passes over {ranks['rows']} rows to judge on; the peak is that of its widest "
                f"run, at rank {ranks['widest']}"
            )
    if any(entry.failure for entry in found.verified):
        raise typer.Exit(1)


def _rank_probe(config: RunConfig) -> dict[str, int]:
    """The largest cost of moving the ranks, if a probe shall."""
    from graftlm.training.rank_probe import PROBES, WIDER
    from graftlm.training.rate_probe import ROWS, STEPS

    if not config.lora.probe_ranks:
        return {}
    steps = PROBES * min(STEPS, config.train.steps or STEPS)
    widest = WIDER * config.lora.rank
    return {"steps": steps, "passes": PROBES, "rows": ROWS, "widest": widest}


def _probe(config: RunConfig, found: Plan) -> dict[str, Any]:
    """The largest cost of choosing the learning rate, if a probe shall."""
    from graftlm.training.rate_probe import GRID, ROWS, STEPS

    if config.train.learning_rate != "auto":
        return {}
    steps = GRID * min(STEPS, config.train.steps or STEPS)
    each = found.recommendation.option.seconds_per_step
    seconds = None if each is None else steps * each
    return {"probe": {"steps": steps, "passes": GRID + 1, "rows": ROWS, "seconds": seconds}}


def _print(found: Plan) -> None:
    from rich.console import Console

    from graftlm.config import format_size

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    if found.processes > 1:  # a wider first column
        console.width = max(console.width, 100)
    console.print(_table(found))
    if found.verified:
        console.print(_verified_table(found))
    chosen = found.recommendation
    peak = chosen.option
    parts = ", ".join(
        f"{name.replace('_', ' ')} {format_size(size)}"
        for name, size in peak.components.items()
        if size >= 0.005 * peak.predicted_peak_bytes
    )
    for entry in found.verified:
        if entry.failure:
            console.print(f"Not measured: {entry.failure}", markup=False)
    console.print(f"{'Nothing fits' if chosen.missing else 'Recommended'}: {chosen.why}.")
    console.print(f"Its peak, at {peak.peak_at}: {parts}.")
    console.print(MEMORY_OF)
    for problem in found.left_out:
        console.print(f"Left out, since training refuses it: {problem}.", markup=False)
    if found.experts is not None:
        console.print(str(found.experts), markup=False)
    if not chosen.missing:
        console.print(f"\n  {found.command}")


def _table(found: Plan) -> Any:
    from rich.table import Table

    from graftlm.config import format_size

    title = f"{found.model} on {found.device}, limit {format_size(found.limit)}"
    title += f" in each of {found.processes} processes" if found.processes > 1 else ""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in _COLUMNS:
        right = name in ("rows × length", "peak", "time a step")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for option in found.options:
        mark = " ←" if option == found.recommendation.option and option.fits else ""
        table.add_row(
            _method(option),
            "yes" if option.gradient_checkpointing else "no",
            option.embeddings,
            f"{option.rows} × {option.length}",
            format_size(option.predicted_peak_bytes),
            _time(option),
            ("yes" if option.fits else "no") + mark,
        )
    return table


def _method(option: Option) -> str:
    """The method, and how it is spread over memory and processes."""
    parts: list[str] = [option.method]
    parts += ["layers in host memory"] if option.offload == "layers" else []
    parts += [option.distributed] if option.distributed != "none" else []
    return ", ".join(parts)


def _verified_table(found: Plan) -> Any:
    from rich.table import Table

    from graftlm.config import format_size

    table = Table(title="run for real", title_justify="left", box=None, pad_edge=False)
    said = ("method", "recompute", "embeddings")
    for name in (*said, "predicted", "measured", "error", "time a step"):
        table.add_column(name, justify="left" if name in said else "right")
    for entry in found.verified:
        table.add_row(
            entry.option.method,
            "yes" if entry.option.gradient_checkpointing else "no",
            entry.option.embeddings,
            format_size(entry.option.predicted_peak_bytes),
            *_measured(entry),
        )
    return table


def _measured(entry: Verified) -> tuple[str, str, str]:
    """The cells of a run: its peak, the error of the prediction, the time of a step."""
    from graftlm.config import format_size

    if entry.measured is None or entry.error is None:
        return "failed", "–", "–"
    seconds = entry.measured.seconds_per_step
    return format_size(entry.measured.peak_bytes), f"{entry.error:+.1%}", f"{seconds:.2f} s"


def _time(option: Option) -> str:
    if option.seconds_per_step is None or option.seconds_uncertainty is None:
        return "–"
    return f"{option.seconds_per_step:.2g} ± {option.seconds_uncertainty:.1g} s"
