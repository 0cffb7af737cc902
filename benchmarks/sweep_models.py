"""Try every causal architecture of the installed transformers, tiny, with all that graftlm does.

    python benchmarks/sweep_models.py [--only llama,mamba] [--csv FILE] [--markdown FILE] [--quick]

A row an architecture, a column a stage (`sweep_stages.py`); a stage ends

    equal (…)         as transformers, PEFT or torch say, or done where there is nothing to compare
    refused: …        graftlm's own sentence
    DIFFERENT: …      a silent fault
    TRACEBACK …       an error that is not graftlm's, or no answer in time

Each architecture has a process of its own with a time limit, so that a crash or a hang costs only
its own row. Rows are written as they come. `--from FILE` makes the table of an earlier CSV.
"""

from __future__ import annotations

import argparse
import collections
import csv
import importlib.metadata
import logging
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.sweep_stages import QUICK, STAGES, NotTinyError, sweep
from tests.oracles.byte_tokenizer import byte_tokenizer
from tests.oracles.tiny_architectures import architectures

LIMIT_SECONDS = 180
NOT_TINY = "not tried: "
Row = dict[str, str]


def in_process(model_type: str, stages: tuple[str, ...], out: Any) -> None:
    """Runs in a process of its own; sends each outcome as it comes."""
    import torch
    import transformers

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        try:
            for outcome in sweep(model_type, Path(folder), byte_tokenizer(), stages):
                out.send(outcome)
        except NotTinyError as error:
            out.send(("load", f"{NOT_TINY}{error}"))
        out.send(None)


def row_of(context: Any, model_type: str, stages: tuple[str, ...], seconds: float) -> Row:
    """The outcome of each stage; the stage at which the process ended or hung is a fault."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=in_process, args=(model_type, stages, sender))
    process.start()
    sender.close()
    row: Row = {}
    end, fault = time.monotonic() + seconds, f"TRACEBACK no answer within {seconds:.0f} s"
    try:
        while receiver.poll(max(0.0, end - time.monotonic())):
            outcome = receiver.recv()
            if outcome is None:
                fault = ""
                break
            row[outcome[0]] = outcome[1]
    except EOFError:
        process.join(5)
        fault = f"TRACEBACK the process ended with exit code {process.exitcode}"
    if fault:
        row[next(stage for stage in stages if stage not in row)] = fault
    process.kill()
    process.join()
    return row


def kind(outcome: str) -> str:
    """The first word: equal, refused, DIFFERENT, TRACEBACK, not tried; empty when not reached."""
    if outcome.startswith(NOT_TINY):
        return "not tried"
    return outcome.partition(" ")[0].rstrip(":")


def markdown(rows: dict[str, Row], stages: tuple[str, ...]) -> str:
    """Counts of each stage, the table, and the full text of all that is not equal."""
    kinds = ("equal", "refused", "DIFFERENT", "TRACEBACK", "not tried")
    versions = ", ".join(
        f"{package} {importlib.metadata.version(package)}"
        for package in ("transformers", "peft", "torch")
    )
    lines = [
        "# Which models work",
        "",
        f"Made by `python benchmarks/sweep_models.py --markdown docs/support-matrix.md` with "
        f"{versions}: a tiny random model in float32 of {len(rows)} of the {len(architectures())} "
        "causal architectures that transformers has.",
        "",
        "`=` equal to transformers, PEFT or torch, or done where there is nothing to compare · `r` "
        "refused in a sentence · `≠` **different, silently** · `!` **an error that is not "
        "graftlm's own** · empty: not reached, as loading is refused, or not tried. What is not "
        "`=` is listed below.",
        "",
        "| | " + " | ".join(stages) + " |",
        "|---" * (len(stages) + 1) + "|",
    ]
    for name in kinds:
        counts = collections.Counter(
            stage for row in rows.values() for stage in stages if kind(row.get(stage, "")) == name
        )
        if counts:
            lines.append(f"| {name} | " + " | ".join(str(counts[stage]) for stage in stages) + " |")
    lines += ["", "| architecture | " + " | ".join(stages) + " |"]
    lines.append("|---" * (len(stages) + 1) + "|")
    signs = {"equal": "=", "refused": "r", "DIFFERENT": "≠", "TRACEBACK": "!", "not tried": "–"}
    for name, row in rows.items():
        cells = (signs.get(kind(row.get(stage, "")), "") for stage in stages)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for name in kinds[1:]:
        found = [
            f"- {model}, {stage}: {outcome.removeprefix(name).lstrip(': ')}"
            for model, row in rows.items()
            for stage, outcome in row.items()
            if kind(outcome) == name
        ]
        if found:
            lines += ["", f"## {name} ({len(found)})", "", *found]
    return "\n".join(lines).replace(tempfile.gettempdir(), "…") + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="architectures, by comma")
    parser.add_argument("--csv", type=Path, default=Path("sweep.csv"))
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--quick", action="store_true", help="without training and planning")
    parser.add_argument("--stages", default=",".join(STAGES), help="only these, by comma")
    parser.add_argument("--seconds", type=float, default=LIMIT_SECONDS, help="an architecture")
    parser.add_argument("--from", dest="earlier", type=Path, help="only make the table of this CSV")
    args = parser.parse_args()
    stages = QUICK if args.quick else tuple(args.stages.split(","))
    if args.earlier:
        with args.earlier.open(encoding="utf-8", newline="") as file:
            rows = {
                row.pop("architecture"): {stage: text for stage, text in row.items() if text}
                for row in csv.DictReader(file)
            }
    else:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.sweep_stages", "peft", "transformers"])
        rows = {}
        with args.csv.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["architecture", *stages])
            writer.writeheader()
            for model_type in args.only.split(",") if args.only else sorted(architectures()):
                rows[model_type] = row_of(context, model_type, stages, args.seconds)
                writer.writerow({"architecture": model_type, **rows[model_type]})
                file.flush()
                for stage, outcome in rows[model_type].items():
                    if kind(outcome) != "equal":
                        print(f"{model_type}, {stage}: {outcome}", flush=True)
    if args.markdown:
        args.markdown.write_text(markdown(rows, stages), encoding="utf-8")
    faults = sum(kind(o) in ("DIFFERENT", "TRACEBACK") for r in rows.values() for o in r.values())
    print(f"{len(rows)} architectures, {faults} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
