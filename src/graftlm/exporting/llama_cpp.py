"""Runs a written GGUF in llama.cpp beside the live adapter, where `llama-cpp-python` is installed.

Both continue the same prompts greedily, by the same tokens. Then llama.cpp reads the live adapter's
answers and is asked at each position what it would say next:

    agreement     share of positions where its most probable token is the live adapter's
    kl            mean over the positions of Σ p log(p / q), p the live adapter's, q llama.cpp's
    same_answers  share of prompts that it answers by itself with the same tokens to the end
    same_tokens   share of the tokens of its own answers before the first that differs
    stopped       share of answers that end by themselves: the live adapter's, llama.cpp's

Agreement is counted on the live adapter's text, so that one different token does not spoil the
positions after it. The prompts are those of the run's rows, else the beginnings of a shipped text.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graftlm.adapters.adapter_folder import run_settings
from graftlm.adapters.adapter_tokenizer import adapter_tokenizer
from graftlm.adapters.peft_format import load_adapter
from graftlm.data import Example, stop_tokens
from graftlm.data.shipped_text import TEXT
from graftlm.exporting.merge_rows import merge_rows
from graftlm.exporting.target import Proof
from graftlm.files import temporary_folder
from graftlm.models import generate_text, load_model, resolve
from graftlm.models.llama_cpp import NOT_INSTALLED, LlamaCpp, installed
from graftlm.models.source import original_gguf

__all__ = ["LiveAnswers", "base_file_of", "compare_file", "compare_with", "live_answers"]

PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS = 10, 24, 32
LEAST_AGREEMENT = 0.5
"""Of a 4-bit file; finer types agree far better. Another model agrees on a few percent."""
TOGETHER = 10
"""Prompts that the live adapter continues in one batch."""


@dataclasses.dataclass(frozen=True)
class LiveAnswers:
    """What the live adapter says.

    Attributes:
        continued: its answers.
        texts: texts with their tokens.
        ends: the tokens that end an answer.
        answer_tokens: the longest answer that was asked for.
    """

    continued: list[_Continued]
    texts: list[tuple[str, list[int]]]
    ends: frozenset[int]
    answer_tokens: int


@dataclasses.dataclass(frozen=True)
class _Continued:
    """A prompt, the live adapter's greedy answer, and its logits (length of the answer, vocab)."""

    prompt: list[int]
    answer: list[int]
    logits: Tensor
    stopped: bool


def compare_file(
    adapter: Path,
    base: str,
    file: Path,
    onto: str,
    *,
    as_adapter: bool = False,
    prompts: int = PROMPTS,
    answer_tokens: int = ANSWER_TOKENS,
) -> Proof:
    """Compare the file in llama.cpp with the live adapter on its base.

    Args:
        adapter: a PEFT adapter folder, or a run folder.
        base: the name of its base model.
        file: the GGUF file.
        onto: the weight format of the base, or ``"original"``.
        as_adapter: whether the file is an adapter, to be run on a GGUF of the base.
        prompts: how many prompts are continued, at most.
        answer_tokens: by how many tokens each, at most.

    Returns:
        The figures of the file's docstring, ``prompts``, ``positions`` and ``tokens_equal``:
        whether llama.cpp splits text into the same tokens; or ``not_run`` with the reason.
    """
    if not installed():
        return Proof([], {"not_run": NOT_INSTALLED})
    live = live_answers(adapter, base, onto, prompts, answer_tokens)
    gc.collect()
    with base_file_of(adapter, base, as_adapter) as base_file:
        return compare_with(live, base_file or file, file if as_adapter else None)


def compare_with(live: LiveAnswers, file: Path, adapter: Path | None = None) -> Proof:
    """Compare a GGUF file, perhaps with one of an adapter, with what the live adapter says."""
    longest = max(len(one.prompt) for one in live.continued) + live.answer_tokens + 1
    model = LlamaCpp(file, adapter, longest, every_logit=True)
    try:
        equal = all(model.tokens(text, begin=False) == ids for text, ids in live.texts)
        figures = _figures(model, live)
    finally:
        model.close()
    figures["tokens_equal"] = equal
    problems = []
    if not equal:
        problems.append("llama.cpp splits text into other tokens than the model's tokenizer")
    if not figures["agreement"] >= LEAST_AGREEMENT:
        problems.append(
            f"llama.cpp chooses the adapter's next token in {figures['agreement']:.0%} of the "
            f"positions; expected at least {LEAST_AGREEMENT:.0%}"
        )
    return Proof(problems, figures)


def _figures(model: LlamaCpp, live: LiveAnswers) -> dict[str, Any]:
    continued, ends = live.continued, live.ends
    agreed, divergence, positions = 0, 0.0, 0
    same_answers, same_tokens, own_tokens, stopped = 0, 0, 0, 0
    for one in continued:
        there = model.logits([*one.prompt, *one.answer])[len(one.prompt) - 1 : -1]
        p, q = one.logits.log_softmax(-1), there.log_softmax(-1)
        agreed += int((one.logits.argmax(-1) == there.argmax(-1)).sum())
        divergence += float((p.exp() * (p - q)).sum())
        positions += len(one.answer)
        own = model.greedy(one.prompt, live.answer_tokens)
        own = own[: next((i + 1 for i, token in enumerate(own) if token in ends), len(own))]
        pairs = zip(own, one.answer, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(own), len(one.answer)))
        same_answers += own == one.answer
        same_tokens += same
        own_tokens += len(own)
        stopped += own[-1] in ends
    return {
        "agreement": agreed / positions,
        "kl": divergence / positions,
        "same_answers": same_answers / len(continued),
        "same_tokens": same_tokens / own_tokens,
        "stopped": [
            sum(one.stopped for one in continued) / len(continued),
            stopped / len(continued),
        ],
        "prompts": len(continued),
        "positions": positions,
    }


@torch.no_grad()
def live_answers(
    adapter: Path, base: str, onto: str, prompts: int, answer_tokens: int
) -> LiveAnswers:
    """Ask the live adapter; the arguments are those of `compare_file`."""
    settings = run_settings(adapter)
    stored: dict[str, Any] = {}
    if settings is not None:
        names = ("block_size", "double_quant", "dtype")
        stored = {name: getattr(settings.model, name) for name in names}
    storage = None if onto == "original" else onto
    model, tokenizer = load_model(base, quantize=storage, device="cpu", **stored)
    load_adapter(model, adapter)
    tokenizer = adapter_tokenizer(adapter, tokenizer)
    model.train(False)
    ends = frozenset() if tokenizer.eos_token_id is None else frozenset(stop_tokens(tokenizer))
    rows = merge_rows(adapter, resolve(base).path, calibrating=False).measured
    asked = [_prompt_of(row) for row in rows][:prompts]
    live = []
    for first in range(0, len(asked), TOGETHER):
        group = asked[first : first + TOGETHER]
        answers = generate_text(model, tokenizer, group, max_new_tokens=answer_tokens, stop=ends)
        for prompt, said in zip(group, answers, strict=True):
            answer = list(said.ids)
            ids = torch.tensor([[*prompt, *answer]])
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 :].float()
            if said.stopped:  # the end token, which `ids` leaves out, is what it says next
                answer.append(int(logits[-1].argmax()))
            live.append(_Continued(prompt, answer, logits[: len(answer)], said.stopped))
    texts = [text for text in TEXT.read_text(encoding="utf-8").split("\n\n") if len(text) > 80]
    pieces = [(text, tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    return LiveAnswers(live, pieces[:20], ends, answer_tokens)


def _prompt_of(row: Example) -> list[int]:
    """The tokens before the first one that is learned; of plain text, its first tokens."""
    ids, learned = [int(token) for token in row.input_ids], list(row.supervised)
    first = next((place for place, one in enumerate(learned) if one), len(ids))
    return ids[:first] if first > 1 else ids[:PROMPT_TOKENS]


@contextlib.contextmanager
def base_file_of(adapter: Path, base: str, wanted: bool) -> Iterator[Path | None]:
    """A GGUF of the base: the one it came from, or one written for the occasion."""
    if not wanted:
        yield None
        return
    with original_gguf(base) as found:
        if found is not None:
            yield found
            return
    from graftlm.exporting.gguf.merged_file import write_base

    with temporary_folder("llama") as folder:
        file = folder / "base.gguf"
        write_base(file, adapter, base)
        yield file
