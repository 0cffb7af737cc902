"""The progress line on stderr: loss, speed, memory, time left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["progress_bar"]


@contextlib.contextmanager
def progress_bar(
    total_steps: int, first_step: int, shown: bool
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that takes each step's metrics row and redraws the line."""
    if not shown:
        yield lambda row: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("[bold]train"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]} · {task.fields[speed]} tok/s · {task.fields[memory]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(
            "train", total=total_steps, completed=first_step, loss="–", speed="–", memory="–"
        )

        def update(row: dict[str, Any]) -> None:
            bar.update(
                task,
                completed=row["step"],
                loss=f"{row['loss']:.4f}",
                speed=f"{row['tokens_per_second']:.0f}",
                memory=f"{row['memory_bytes'] / 1e9:.2f} GB",
            )

        yield update
