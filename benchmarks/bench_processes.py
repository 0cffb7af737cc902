"""Training in several processes beside one: loss curves, resuming, kills. Gloo on this CPU.

    python benchmarks/bench_processes.py                 all of it, a random Llama of two layers
    python benchmarks/bench_processes.py --quick         a few of each, as the tests run it
    python benchmarks/bench_processes.py memory          memory of a rank, a random Llama of 1.1 B
    python benchmarks/bench_processes.py --quick --model gemma-3-270m --learning-rate 1e-5 curves

curves   loss and gradient norm of 1, 2 and 4 processes with the same settings: the largest relative
         difference of the losses from those of one process
trained  the same for what trains beside adapters: whole modules, rows of the table, new tokens; and
         the largest difference of a tensor of the adapter that is left
resume   saved on 2 processes, resumed on 2, 1 and 4, beside the run that was not stopped: 0 is
         equal to the last bit in every tensor
kills    SIGKILL of a random rank at a random moment: seconds until all others have ended, and
         whether the run then resumes to the end
memory   see `rank_memory.py`; only if it is named

All but memory in float32. Prints CSV rows; ends with exit code 1 if a limit is passed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import rank_memory
import ranks
from random_llama import write_tiny_llama

# Before torch is imported: a fork keeps no other thread.
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

CHOSEN: dict[str, Any] = {}
"""Settings of training that the command line names, in the place of a part's own few."""
LIMIT = 1e-5
ENDS_WITHIN = 30.0


def write_inputs(work: Path, model: str | None) -> None:
    """A random Llama, or a link to the model that is named, and rows of uneven length."""
    if model is None:
        write_tiny_llama(work / "model")
    else:
        from graftlm.models import resolve

        (work / "model").symlink_to(resolve(model).path, target_is_directory=True)
    draw, rows = random.Random(0), []
    for _ in range(61):  # with batches of 7, the last one is short
        word = "".join(draw.choice("abcdefgh") for _ in range(draw.randint(2, 50)))
        rows.append(json.dumps({"prompt": f"say {word}", "completion": f"{word}!"}) + "\n")
    (work / "rows.jsonl").write_text("".join(rows))


def settings(work: Path, out: str, method: str, engine: str, **train: Any) -> Any:
    """The request of one run; the same in any number of processes."""
    from graftlm.config import RunConfig, validate

    packing, dropout = train.pop("packing", False), train.pop("dropout", 0.0)
    data, lora = train.pop("data", {}), train.pop("lora", {})
    few = {"steps": 30, "batch_size": 7, "learning_rate": 1e-3, "eval_steps": 10, "save_steps": 4}
    few |= CHOSEN
    tree = {
        "out": str(work / out),
        "method": method,
        "distributed": engine,
        "model": {"name": str(work / "model"), "dtype": "float32"},
        "data": {
            "train": str(work / "rows.jsonl"),
            "eval_fraction": 0.15,
            "max_length": 128,
            "packing": packing,
            **data,
        },
        "lora": {"rank": 4, "dropout": dropout, **lora},
        "train": few | train,
    }
    return validate(RunConfig, tree)


def trained(world: int, config: Any, resume: bool = False) -> list[dict[str, Any]]:
    """Train in ``world`` processes; the metrics rows."""
    from graftlm.training import run
    from graftlm.training.hooks.metrics_file import read_metrics

    out = Path(config.out)
    ranks.run(world, lambda: run(config, resume=resume, progress=False), out.with_suffix(".log"))
    return read_metrics(out / "metrics.jsonl")


def difference(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> float:
    """The largest relative difference of the losses, those of evaluations too."""
    pairs = [
        (a[key], b[key])
        for a, b in zip(one, other, strict=True)
        for key in ("loss", "eval_loss")
        if key in a
    ]
    assert [row["supervised_tokens"] for row in one] == [row["supervised_tokens"] for row in other]
    return max(abs(a - b) / abs(a) for a, b in pairs)


def curves(work: Path, quick: bool) -> bool:
    """A row for each kind of run; whether all stay within the limit."""
    print("curves,method,packing,accumulation,engine,processes,largest relative difference")
    good = True
    kinds = itertools.product(("lora", "qlora"), (False, True), (1, 3))
    for number, (method, packing, accumulation) in enumerate(kinds):
        if quick and number not in (1, 6):
            continue
        one: list[dict[str, Any]] = []
        places = [("none", 1), ("ddp", 2), ("ddp", 4), ("fsdp", 2), ("fsdp", 4)]
        for engine, world in places:
            if quick and (engine, world) in (("ddp", 4), ("fsdp", 2)):
                continue
            out = f"c-{method}-{packing}-{accumulation}-{engine}-{world}"
            config = settings(
                work, out, method, engine, packing=packing, gradient_accumulation_steps=accumulation
            )
            rows = trained(world, config)
            one = one or rows
            apart = difference(one, rows)
            good = good and apart <= LIMIT
            told = f"{method},{packing},{accumulation},{engine},{world}"
            print(f"curve,{told},{apart:.1e}", flush=True)
    return good


PARTS: dict[str, dict[str, Any]] = {
    "modules": {"lora": {"modules_to_save": ["norm", "lm_head"]}},
    "rows": {"lora": {"trainable_token_indices": [5, 9, 101]}},
    "new tokens": {"data": {"new_tokens": ["say"]}},
}
"""What trains beside the adapters."""


def trained_parts(work: Path, quick: bool) -> bool:
    """A row for each kind of part; whether all follow one process. FSDP2 takes new tokens only."""
    print("trained,parts,method,engine,processes,difference of losses,difference of tensors")
    good = True
    for number, (parts, more) in enumerate(PARTS.items()):
        for method in ("qlora",) if quick and number == 1 else ("lora", "qlora")[: 2 - quick]:
            whole = settings(work, f"t-{number}-{method}", method, "none", steps=12, **more)
            rows = trained(1, whole)
            for engine in ("ddp", "fsdp") if "data" in more else ("ddp",):
                out = f"t-{number}-{method}-{engine}"
                config = settings(work, out, method, engine, steps=12, **more)
                losses = difference(rows, trained(2, config))
                found = apart(tensors(Path(whole.out)), tensors(Path(config.out)))
                good = good and losses <= LIMIT and found < 1e-3
                print(f"part,{parts},{method},{engine},2,{losses:.1e},{found:.1e}", flush=True)
    return good


def tensors(out: Path) -> dict[str, Any]:
    """What a run leaves: the adapter and its last checkpoint."""
    import safetensors.torch

    last = max((out / "checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1]))
    files = [*out.glob("adapter/*.safetensors"), last / "optimizer.safetensors"]
    return {
        f"{file.name}/{name}": tensor
        for file in files
        for name, tensor in safetensors.torch.load_file(file).items()
    }


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of a tensor, relative to its largest number; 0: the same bits."""
    import torch

    assert one.keys() == other.keys()
    if all(torch.equal(one[name], other[name]) for name in one):
        return 0.0
    return max(
        float((one[name] - other[name]).abs().max() / one[name].abs().max().clamp(min=1e-12))
        for name in one
    )


def resume(work: Path, quick: bool) -> bool:
    """Stop on 2 at step 8 of 16, go on elsewhere; whether all end as they must."""
    from graftlm.training import run
    from graftlm.training.hooks import Hook

    class StopAt8(Hook):
        def step_ends(self, active: Any) -> None:
            if active.state.step == 8 and active.run.placement.rank == 1:
                active.pause()

    print("resume,method,engine,resumed on,dropout,difference of tensors")
    good = True
    for method, engine in (("lora", "ddp"), ("qlora", "fsdp")):
        for dropout, places in ((0.1, (2,)), (0.0, (1, 4))):
            whole = settings(
                work,
                f"r-{engine}-{dropout:g}".replace(".", ""),
                method,
                engine,
                steps=16,
                dropout=dropout,
            )
            trained(2, whole)
            for world in places:
                name = f"r-{engine}-{dropout:g}-{world}".replace(".", "")
                config = settings(work, name, method, engine, steps=16, dropout=dropout)
                log = Path(config.out).with_suffix(".log")
                ranks.run(2, lambda c=config: run(c, progress=False, hooks=[StopAt8()]), log)
                assert not json.loads((work / name / "summary.json").read_text())["finished"]
                trained(world, config, resume=True)
                found = apart(tensors(Path(whole.out)), tensors(work / name))
                good = good and (found == 0 if world == 2 else found < 1e-3)
                print(f"resumed,{method},{engine},{world},{dropout},{found:.1e}")
    return good


def kills(work: Path, count: int) -> bool:
    """Kill one of two ranks; whether all end in time and resume to the same end."""
    from graftlm.training import run

    print("kills,engine,moment,rank,seconds to the end of all,exit codes,resumed to the end")
    draw, good = random.Random(1), True
    config = settings(work, "k-whole", "lora", "ddp", save_steps=1)
    started = time.perf_counter()
    trained(2, config)
    length = time.perf_counter() - started
    for number in range(count):
        engine = ("ddp", "fsdp")[number % 2]
        config = settings(work, f"k-{number}", "lora", engine, save_steps=1)
        log = Path(config.out).with_suffix(".log")
        moment, rank = draw.uniform(0, length), draw.randrange(2)
        forks = ranks.start(2, lambda c=config: run(c, progress=False), log)
        time.sleep(moment)
        os.kill(forks[rank], signal.SIGKILL)
        killed = time.perf_counter()
        codes = ranks.end(forks)
        seconds = time.perf_counter() - killed
        begun = (Path(config.out) / "config.yaml").exists()
        trained(2, config, resume=begun)
        summary = json.loads((Path(config.out) / "summary.json").read_text())
        hidden = [path for path in Path(config.out).rglob(".*") if path.name != ".lock"]
        ended = bool(summary["finished"] and summary["steps"] == 30 and not hidden)
        good = good and ended and seconds < ENDS_WITHIN
        told = f"{codes[0]} {codes[1]}"
        print(f"kill,{engine},{moment:.2f} s,{rank},{seconds:.1f},{told},{ended}", flush=True)
    return good


def main() -> int:
    """Print the rows; 1 if a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--model", help="a folder or a built-in model in the place of the tiny one")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("parts", nargs="*", default=["curves", "trained", "resume", "kills"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name).resolve()
        import torch

        torch.set_num_threads(1)
        write_inputs(work, options.model)
        chosen = {"steps": options.steps, "learning_rate": options.learning_rate}
        CHOSEN.update({name: value for name, value in chosen.items() if value is not None})
        import graftlm.distributed.joined
        import graftlm.distributed.sharded  # noqa: F401 - imported before the first fork
        from graftlm.training import run  # noqa: F401

        made = {
            "curves": lambda: curves(work, options.quick),
            "trained": lambda: trained_parts(work, options.quick),
            "resume": lambda: resume(work, options.quick),
            "kills": lambda: kills(work, 2 if options.quick else options.kills),
            "memory": lambda: rank_memory.memory(work),
        }
        good = [made[part]() for part in options.parts]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
