"""Tokens a second of decoding, in one run: `python benchmarks/bench_decode.py [--csv FILE]`.

Gemma-3-270M, 1 and 25 rows of 32 tokens, by

- `graftlm`: the decoder behind chat, generate, serve and the demo, NF4 and bfloat16;
- `transformers`: its `generate`, NF4 by bitsandbytes, and bfloat16;
- `llama.cpp`: the same weights in a GGUF file of Q4_0, all rows as sequences of one context.

All models stay open and take turns, `--rounds` times, so that a machine that slows down slows all.
Only tokens after the first are timed: the prompt is read before (of `generate`, the time of one
token is taken off). Printed is the median of the rounds, the slowest and the fastest, and the ratio
of graftlm's median to the others'. With `--cpu-time`, set OMP_NUM_THREADS=1 too. A package that is
missing is named, and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from base_as_gguf import base_as_gguf
from transformers.utils.logging import disable_progress_bar

from graftlm.models import load_model, resolve
from graftlm.models.decoding.decoder import Decoder
from graftlm.models.decoding.row import Ask

MODEL = "gemma-3-270m"
PROMPT = 32
CLOCK = time.process_time if "--cpu-time" in sys.argv else time.perf_counter
KEPT: list[Any] = []
"""What llama.cpp calls as long as the process lives."""
Measure = Callable[[int, int], float]
"""Rows and tokens → seconds."""


def prompts(rows: int) -> list[tuple[int, ...]]:
    draw = torch.Generator().manual_seed(0)
    return [
        tuple(torch.randint(3, 200_000, (PROMPT,), generator=draw).tolist()) for _ in range(rows)
    ]


def ours(quantize: str | None) -> Measure:
    model, tokenizer = load_model(MODEL, quantize=quantize, device="cpu")
    decoder = Decoder(model.train(False), tokenizer, prefix_bytes=0)
    decoder.ends = frozenset()  # every row has the same length

    def seconds(rows: int, tokens: int) -> float:
        for ids in prompts(rows):
            decoder.add(Ask(ids, tokens + 2))
        decoder.step()
        decoder.step()
        begun = CLOCK()
        for _ in range(tokens):
            decoder.step()
        took = CLOCK() - begun
        decoder.clear()
        return took

    return seconds


def theirs(four_bits: bool) -> Measure:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    more: dict[str, Any] = {}
    if four_bits:
        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
        more["device_map"] = "cpu"
    folder = resolve(MODEL).path
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **more).eval()

    def generated(ids: torch.Tensor, count: int) -> float:
        begun = CLOCK()
        with torch.inference_mode():
            model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                min_new_tokens=count, max_new_tokens=count, pad_token_id=0, top_k=None, top_p=None,
            )  # fmt: skip
        return CLOCK() - begun

    def seconds(rows: int, tokens: int) -> float:
        ids = torch.tensor(prompts(rows))
        first = generated(ids, 1)
        return generated(ids, tokens + 1) - first

    return seconds


@contextlib.contextmanager
def llama(most_rows: int, most_tokens: int) -> Iterator[Measure]:
    """llama.cpp's own functions: one batch a step, with one token of every sequence."""
    import llama_cpp

    KEPT.append(llama_cpp.llama_log_callback(lambda level, text, data: None))
    llama_cpp.llama_log_set(KEPT[-1], None)
    with tempfile.TemporaryDirectory() as folder:
        file = base_as_gguf(MODEL, Path(folder))
        model = llama_cpp.llama_model_load_from_file(
            str(file).encode(), llama_cpp.llama_model_default_params()
        )
        asked = llama_cpp.llama_context_default_params()
        asked.n_seq_max, asked.n_ctx = most_rows, most_rows * (PROMPT + most_tokens + 8)
        asked.n_batch = max(512, most_rows * PROMPT)
        asked.n_threads = asked.n_threads_batch = torch.get_num_threads()
        context = llama_cpp.llama_init_from_model(model, asked)
        words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        batch = llama_cpp.llama_batch_init(asked.n_batch, 0, 1)

        def read(tokens: list[list[int]], at: int) -> list[int]:
            """Read some tokens of every sequence; the most probable next ones."""
            last, count = [], 0
            for row, ids in enumerate(tokens):
                for place, token in enumerate(ids):
                    batch.token[count], batch.pos[count] = token, at + place
                    batch.n_seq_id[count], batch.seq_id[count][0] = 1, row
                    batch.logits[count] = place == len(ids) - 1
                    count += 1
                last.append(count - 1)
            batch.n_tokens = count
            if llama_cpp.llama_decode(context, batch):
                raise RuntimeError("llama.cpp could not read the batch")
            rows = (llama_cpp.llama_get_logits_ith(context, place) for place in last)
            return [int(np.ctypeslib.as_array(row, (words,)).argmax()) for row in rows]

        def seconds(rows: int, tokens: int) -> float:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
            following = read([list(ids) for ids in prompts(rows)], 0)
            following = read([[token] for token in following], PROMPT)
            begun = CLOCK()
            for step in range(tokens):
                following = read([[token] for token in following], PROMPT + 1 + step)
            return CLOCK() - begun

        yield seconds
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


def missing(package: str) -> bool:
    if importlib.util.find_spec(package) is not None:
        return False
    print(f"{package} is not installed, and left out: pip install {package.replace('_', '-')}")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 25])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--csv", type=Path)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="one thread, by its CPU time: for a machine that others use too",
    )
    asked = parser.parse_args()
    if asked.cpu_time:
        torch.set_num_threads(1)
    disable_progress_bar()
    with contextlib.ExitStack() as opened:
        sides: dict[tuple[str, str], Measure] = {("graftlm", "NF4"): ours("nf4")}
        if not missing("bitsandbytes"):
            sides["transformers", "NF4"] = theirs(four_bits=True)
        if not missing("llama_cpp"):
            measure = opened.enter_context(llama(max(asked.rows), asked.tokens))
            sides["llama.cpp", "Q4_0"] = measure
        sides["graftlm", "bfloat16"] = ours(None)
        sides["transformers", "bfloat16"] = theirs(four_bits=False)
        took: dict[tuple[str, str, int], list[float]] = {}
        for _ in range(asked.rounds):
            for rows in asked.rows:
                for (by, form), measure in sides.items():
                    took.setdefault((by, form, rows), []).append(measure(rows, asked.tokens))
                    print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    table = [row_of(key, seconds, asked.tokens) for key, seconds in took.items()]
    fastest = {(r["weights"], r["rows"]): r["median"] for r in table if r["by"] == "graftlm"}
    print(
        f"{'':14}{'weights':10}{'rows':>4}{'tokens/s':>10}{'slowest':>9}{'fastest':>9}  graftlm is"
    )
    for row in sorted(table, key=lambda row: row["rows"]):
        beside = fastest["NF4" if row["weights"] == "Q4_0" else row["weights"], row["rows"]]
        row["graftlm_is"] = beside / row["median"]
        print(
            f"{row['by']:14}{row['weights']:10}{row['rows']:>4}{row['median']:10.1f}"
            f"{row['slowest']:9.1f}{row['fastest']:9.1f}  {row['graftlm_is']:.2f}×"
        )
    if asked.csv is not None:
        with asked.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, table[0].keys())
            writer.writeheader()
            writer.writerows(table)


def row_of(key: tuple[str, str, int], seconds: list[float], tokens: int) -> dict[str, Any]:
    by, form, rows = key
    speeds = [rows * tokens / one for one in seconds]
    return {
        "by": by,
        "weights": form,
        "rows": rows,
        "median": statistics.median(speeds),
        "slowest": min(speeds),
        "fastest": max(speeds),
    }


if __name__ == "__main__":
    main()
