"""Preparing synthetic chat rows: rows/s, tokens/s and peak memory, against TRL's own preparation.

    python benchmarks/bench_data.py [--rows 1000000] [--model gemma-3-270m] [--workers 0]
    python benchmarks/bench_data.py --peer trl --rows 50000 --workers 2   # needs trl, datasets

Each run is a process of its own, from a JSONL file to examples that training can iterate over:
`graftlm.data.load_examples` with an empty cache, or `datasets.load_dataset` followed by
`trl.SFTTrainer._prepare_dataset` (assistant-only loss, the same number of processes). Prints one
CSV row. `cpu_s` is processor time of all processes, which a busy machine does not inflate much;
`peak_mb` is the largest sum, over the process and its children, of memory that is not backed
by a file (a sample every 0.2 s); mapped pages of the result can be evicted and are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

TEXT = """
the a of to and in is it you that he was for on are with as his they be at one have this from or had
by hot but some what there we can out other were all your when up use word how said an each she
which do their time if will way about many then them would write like so these her long make thing
see him two has look more day could go come did my sound no most number who over know water than
call first people may down side been now find any new work part take get place made live where
after back little only round man year came show every good me give our
"""
WORDS = TEXT.split()


def write_rows(path: Path, count: int) -> None:
    """Chats of one or two turns, 15 to 45 words a message, no two alike."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            messages = []
            for turn in range(1 + (number % 4 == 0)):
                for role in ("user", "assistant"):
                    words = draw.choices(WORDS, k=draw.randint(15, 45))
                    text = f"{' '.join(words).capitalize()}, {number}.{turn}."
                    messages.append({"role": role, "content": text})
            file.write(json.dumps({"messages": messages}) + "\n")


def run_graftlm(path: Path, tokenizer, workers: int) -> tuple[int, int, int]:
    from graftlm.config import DataConfig
    from graftlm.data import load_examples

    examples = load_examples(path, tokenizer, DataConfig(max_length=512, workers=workers))
    supervised = sum(int(examples[i].supervised.sum()) for i in range(100))
    return len(examples), int(examples.lengths.sum()), supervised


def run_trl(path: Path, tokenizer, workers: int) -> tuple[int, int, int]:
    import datasets
    from trl import SFTTrainer

    from graftlm.data.chat import use_chat_template

    use_chat_template(tokenizer, "gemma")
    marked = tokenizer.chat_template.replace(
        "{{- '<start_of_turn>model\\n' + message['content'] + \"<end_of_turn>\" + '\\n' }}",
        "{{- '<start_of_turn>model\\n' }}{% generation %}{{- message['content'] + "
        "\"<end_of_turn>\" }}{% endgeneration %}{{- '\\n' }}",
    )
    assert "endgeneration" in marked
    rows = datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(path.parent / "datasets")
    )
    trainer = SimpleNamespace(
        _tokenizer=tokenizer, chat_template=marked, completion_only_loss=False
    )
    config = SimpleNamespace(
        dataset_num_proc=workers or None,
        dataset_text_field="text",
        assistant_only_loss=True,
        max_length=512,
        truncation_mode="keep_start",
        shuffle_dataset=False,
        seed=0,
    )
    made = SFTTrainer._prepare_dataset(trainer, rows, tokenizer, config, False, None, "train")
    tokens = sum(len(ids) for batch in made.iter(1000) for ids in batch["input_ids"])
    supervised = sum(label != -100 for i in range(100) for label in made[i]["labels"])
    return len(made), tokens, supervised


def anonymous(process) -> int:
    try:
        info = process.memory_info()
        return info.rss - info.shared
    except Exception:  # it ended meanwhile
        return 0


def cpu_seconds() -> float:
    """Of this process and the children it has waited for."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(options: argparse.Namespace) -> None:
    """In the child: run once, print a JSON line."""
    import psutil

    from graftlm.models import load_tokenizer

    tokenizer = load_tokenizer(options.model)
    own = psutil.Process()
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            family = [own, *own.children(recursive=True)]
            peak[0] = max(peak[0], sum(anonymous(process) for process in family))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start, busy = time.perf_counter(), cpu_seconds()
    work = run_graftlm if options.peer == "graftlm" else run_trl
    examples, tokens, supervised = work(Path(options.file), tokenizer, options.workers)
    seconds, busy = time.perf_counter() - start, cpu_seconds() - busy
    done.set()
    watcher.join()
    print(json.dumps([examples, tokens, supervised, seconds, busy, peak[0]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--peer", choices=["graftlm", "trl"], default="graftlm")
    parser.add_argument("--file", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.file:
        measure(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(path, options.rows)
        size = path.stat().st_size
        # The result goes to a cache of its own; the model stays in the usual one.
        from graftlm.models import resolve

        model = str(resolve(options.model).path)
        arguments = ["--file", str(path), "--model", model, "--workers", str(options.workers)]
        answer = subprocess.run(
            [sys.executable, __file__, *arguments, "--peer", options.peer],
            env=os.environ | {"GRAFTLM_CACHE": str(Path(folder) / "cache")},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        made, tokens, supervised, seconds, busy, peak = json.loads(answer.stdout.splitlines()[-1])
    packages = [
        "transformers",
        "tokenizers",
        *(["trl", "datasets"] if options.peer == "trl" else []),
    ]
    print(
        "peer,rows,file_mb,examples,tokens,learned_in_100,seconds,cpu_s,rows_s,tokens_s,peak_mb,where"
    )
    where = "; ".join([f"{platform.machine()} {os.cpu_count()} cores",
                       f"{options.workers} workers",
                       *[f"{name} {version(name)}" for name in packages]])  # fmt: skip
    counts = f"{options.rows},{size / 1e6:.0f},{made},{tokens},{supervised}"
    speed = f"{seconds:.1f},{busy:.1f},{options.rows / seconds:.0f},{tokens / seconds:.0f}"
    print(f"{options.peer},{counts},{speed},{peak / 1e6:.0f},{where}")


if __name__ == "__main__":
    main()
