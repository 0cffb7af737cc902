"""How often a model fine-tuned on chats ends its answers by itself.

    python benchmarks/stop_rate.py

Turns the demo's rows into conversations, trains a QLoRA adapter on them, reads it back onto a fresh
base and lets it answer held-out messages (other templates, names and items than in training) with
room for far more tokens than any answer takes. Prints, for the tuned model, a row of CSV: how many
answers ended with an end token the model produced itself, how many ran into the limit, how many
are one JSON object and nothing else, and the longest expected and produced answers in tokens.
Ends with the share that stopped, in percent. Decoding is greedy and in float32.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

import graftlm
from graftlm.adapters.peft_format import load_adapter
from graftlm.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from graftlm.data import render_prompt, stop_tokens
from graftlm.data.scoring import score
from graftlm.demo.requests import CUE, generate_rows
from graftlm.demo.stages import write_rows
from graftlm.models import Answer, generate_text, load_model
from graftlm.training import run


def conversation(row: dict[str, str]) -> dict[str, Any]:
    """A row of the demo as a chat; what tells the model to answer is the template, not the cue."""
    return {
        "messages": [
            {"role": "user", "content": row["prompt"].removesuffix(CUE)},
            {"role": "assistant", "content": row["completion"]},
        ]
    }


def tuned(options: argparse.Namespace, folder: Path) -> tuple[Any, Any]:
    """Train, then load base and adapter anew, as a user would."""
    rows = generate_rows("train", options.train_rows, options.seed)
    write_rows(folder / "train.jsonl", [conversation(row) for row in rows])
    config = RunConfig(
        method="qlora",
        out=str(folder / "run"),
        model=ModelConfig(name=options.model),
        data=DataConfig(train=str(folder / "train.jsonl")),
        train=TrainConfig(
            steps=options.steps,
            batch_size=options.batch_size,
            learning_rate=1e-3,
            seed=options.seed,
        ),
    )
    result = run(config)
    model, tokenizer = load_model(options.model, quantize="nf4", dtype="float32")
    load_adapter(model, str(result.adapter))
    return model.train(False), tokenizer


def answers(
    model: Any, tokenizer: Any, rows: Sequence[dict[str, str]], options: argparse.Namespace
) -> list[Answer]:
    found: list[Answer] = []
    stop = stop_tokens(tokenizer)
    for start in range(0, len(rows), options.rows_at_once):
        part = rows[start : start + options.rows_at_once]
        prompts = [render_prompt(conversation(row)["messages"][:1], tokenizer) for row in part]
        found += generate_text(
            model, tokenizer, prompts, max_new_tokens=options.max_new_tokens, stop=stop
        )
        ended = sum(answer.stopped for answer in found)
        print(f"{ended} of {len(found)} answers ended by themselves", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--train-rows", type=int, default=1200)
    parser.add_argument("--rows", type=int, default=208, help="held-out messages to answer")
    parser.add_argument("--rows-at-once", type=int, default=26)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(
        f"graftlm {graftlm.__version__}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}; {options.model}, qlora, {options.steps} steps "
        f"of {options.batch_size} rows"
    )
    rows = generate_rows("heldout", options.rows, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = tuned(options, Path(folder))
        found = answers(model, tokenizer, rows, options)
    ended = sum(answer.stopped for answer in found)
    scores = [score(a.text, row["completion"]) for a, row in zip(found, rows, strict=True)]
    expected = max(len(tokenizer(row["completion"]).input_ids) for row in rows)
    print("rows,ended,ran_into_limit,one_json_object,exact,longest_expected,longest_answer")
    print(
        f"{len(found)},{ended},{len(found) - ended},{sum(s.parses for s in scores)},"
        f"{sum(s.exact for s in scores)},{expected},{max(answer.tokens for answer in found)}"
    )
    print(f"ended by itself: {100 * ended / len(found):.1f} % of {len(found)} held-out answers")


if __name__ == "__main__":
    main()
