"""`samples.jsonl`: what the model answers to held-out rows at each evaluation.

A line an answer: the step, the row, and the tokens of the prompt, the answer and what is expected.
They are tokens, not text, because a run keeps its tokenizer on disk (Gemma's takes 470 MB).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from graftlm.files import atomic_write
from graftlm.models.generate import continue_ids
from graftlm.models.probing import being_probed
from graftlm.training.active_run import ActiveRun
from graftlm.training.hooks.hook import Hook
from graftlm.training.hooks.metrics_file import read_metrics

__all__ = ["Samples"]

_LONGEST = 128


class Samples(Hook):
    """Answers the first held-out rows greedily. Random numbers of the run are not touched.

    Args:
        folder: the run folder.
        count: how many rows.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.path, self.count = folder / "samples.jsonl", count
        self._last: dict[int, dict[str, Any]] = {}

    def run_begins(self, active: ActiveRun) -> None:
        """Drop the answers past the step where the run continues."""
        kept = [row for row in read_metrics(self.path) if row["step"] <= active.state.step]
        with atomic_write(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self._last = {row["row"]: row for row in kept}

    def evaluation_ends(self, active: ActiveRun, loss: float) -> None:
        """Answer, and append the answers that are not those of the same step."""
        rows = active.run.eval_examples[: self.count]
        asked = [_split(row) for row in rows]
        answers = _answers(active.run.model, [prompt for prompt, _ in asked], asked)
        with self.path.open("a", encoding="utf-8") as file:
            for index, ((prompt, expected), answer) in enumerate(zip(asked, answers, strict=True)):
                row = {
                    "step": active.state.step,
                    "row": index,
                    "prompt": prompt,
                    "answer": answer,
                    "expected": expected,
                }
                if self._last.get(index) != row:
                    file.write(json.dumps(row) + "\n")
                self._last[index] = row


def _split(row: Any) -> tuple[list[int], list[int]]:
    """The tokens before the first answer of a row, and that answer with its end token."""
    ids, learned = np.asarray(row.input_ids), np.asarray(row.supervised, dtype=bool)
    first = max(1, int(np.argmax(learned)))
    after = np.flatnonzero(~learned[first:])
    last = first + int(after[0]) if len(after) else len(ids)
    return ids[:first].tolist(), ids[first:last].tolist()


def _answers(
    model: Any, prompts: list[list[int]], asked: list[tuple[list[int], list[int]]]
) -> list[list[int]]:
    # The last token that is learned of an answer is the one that ends it.
    end = {expected[-1] for _, expected in asked if expected}
    longest = max(len(expected) for _, expected in asked)
    with being_probed(model):
        new = continue_ids(model, prompts, end, max_new_tokens=min(_LONGEST, 2 * longest + 8))
    lengths = [next((n for n, token in enumerate(ids) if token in end), len(ids)) for ids in new]
    return [ids[: length + 1] for ids, length in zip(new, lengths, strict=True)]
