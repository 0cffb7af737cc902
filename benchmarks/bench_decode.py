"""Tokens a second of decoding: `python benchmarks/bench_decode.py [--tokens 12] [--csv FILE]`.

Gemma-3-270M in NF4 and bfloat16, 1 and 25 rows of 32 tokens, by:

- `ours`: the decoder behind chat, generate, serve and the demo;
- `ours by generate`: the same modules under transformers' `generate`, as before the decoder;
- `transformers`: transformers alone, with bitsandbytes for NF4;
- `llama.cpp`: the built-in Q4_K_M file, one row.

Only the tokens after the first are timed: the prompt is read before. Best of three. With
`--cpu-time`, set OMP_NUM_THREADS=1 too.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from graftlm.models import load_model, resolve
from graftlm.models.builtin import assembled
from graftlm.models.decoding.decoder import Decoder
from graftlm.models.decoding.row import Ask
from graftlm.models.llama_cpp import LlamaCpp, installed

MODEL = "gemma-3-270m"
PROMPT = 32
TIMES = 3
CLOCK = time.process_time if "--cpu-time" in sys.argv else time.perf_counter


def prompts(rows: int) -> list[tuple[int, ...]]:
    draw = torch.Generator().manual_seed(0)
    return [
        tuple(torch.randint(3, 200_000, (PROMPT,), generator=draw).tolist()) for _ in range(rows)
    ]


def ours(model: Any, tokenizer: Any, rows: int, tokens: int) -> float:
    with Decoder(model, tokenizer, prefix_bytes=0) as decoder:
        decoder.ends = frozenset()  # every row has the same length
        best = float("inf")
        for _ in range(TIMES):
            for ids in prompts(rows):
                decoder.add(Ask(ids, tokens + 2))
            decoder.step()
            decoder.step()
            begun = CLOCK()
            for _ in range(tokens):
                decoder.step()
            best = min(best, CLOCK() - begun)
            decoder.clear()
    return rows * tokens / best


def by_generate(model: Any, rows: int, tokens: int) -> float:
    ids = torch.tensor(prompts(rows))

    def seconds(count: int) -> float:
        begun = CLOCK()
        with torch.inference_mode():
            model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                min_new_tokens=count, max_new_tokens=count, pad_token_id=0, top_k=None, top_p=None,
            )  # fmt: skip
        return CLOCK() - begun

    best = min(seconds(tokens + 1) for _ in range(TIMES)) - min(seconds(1) for _ in range(TIMES))
    return rows * tokens / best


def theirs(quantize: str) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    more: dict[str, Any] = {}
    if quantize == "nf4":
        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
        more["device_map"] = "cpu"
    folder = resolve(MODEL).path
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **more).eval()


def llama(tokens: int) -> float:
    with assembled(MODEL) as file:
        model = LlamaCpp(file)
    best = float("inf")
    for _ in range(TIMES):
        following = model.continued(list(prompts(1)[0]), 0.0)
        next(following)
        begun = CLOCK()
        for _ in range(tokens):
            next(following)
        best = min(best, CLOCK() - begun)
    model.close()
    return tokens / best


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 25])
    parser.add_argument("--formats", nargs="*", default=["nf4", "bf16"])
    parser.add_argument("--csv", type=Path)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="one thread, by its CPU time: for a machine that others use too",
    )
    asked = parser.parse_args()
    if asked.cpu_time:
        torch.set_num_threads(1)
    found: list[dict[str, Any]] = []

    def note(by: str, form: str, rows: int, speed: float) -> None:
        load = round(os.getloadavg()[0], 1)
        found.append(
            {"by": by, "weights": form, "rows": rows, "tokens_per_second": speed, "load": load}
        )
        print(f"{by:18}{form:8}{rows:>4} rows{speed:9.1f} tokens/s, load {load}", flush=True)

    if installed():
        note("llama.cpp", "Q4_K_M", 1, llama(asked.tokens))
    for form in asked.formats:
        model, tokenizer = load_model(
            MODEL, quantize="nf4" if form == "nf4" else None, device="cpu"
        )
        model.train(False)
        for rows in asked.rows:
            note("ours", form, rows, ours(model, tokenizer, rows, asked.tokens))
            note("ours by generate", form, rows, by_generate(model, rows, asked.tokens))
        model = theirs(form)
        for rows in asked.rows:
            note("transformers", form, rows, by_generate(model, rows, asked.tokens))
    if asked.csv is not None:
        with asked.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, found[0].keys())
            writer.writeheader()
            writer.writerows(found)


if __name__ == "__main__":
    main()
