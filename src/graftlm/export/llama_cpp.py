"""Runs a written GGUF in llama.cpp beside the live adapter, where `llama-cpp-python` is installed.

Both continue the same prompts. The live adapter answers first, greedily; llama.cpp then reads
prompt and answer, and at each position of the answer is asked what it would say next:

    agreement   share of positions where its most probable token is the live adapter's
    kl          mean over the positions of Σ p log(p / q), p the live adapter's, q llama.cpp's

so that one different token does not spoil the positions after it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graftlm.adapters.adapter_folder import run_settings
from graftlm.adapters.adapter_tokenizer import adapter_tokenizer
from graftlm.adapters.peft_format import load_adapter
from graftlm.data.shipped_text import TEXT
from graftlm.export.target import Proof
from graftlm.models import load_model
from graftlm.models.source import original_gguf

__all__ = ["compare_file", "llama_model"]

PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS = 10, 24, 32
LEAST_AGREEMENT = 0.5
"""Of a 4-bit file; finer types agree far better. Another model agrees on a few percent."""
NOT_INSTALLED = "llama-cpp-python is not installed: pip install 'graftlm[llama-cpp]'"


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
        prompts: how many prompts are continued.
        answer_tokens: by how many tokens each.

    Returns:
        The figures ``agreement``, ``kl``, ``positions`` and ``tokens_equal``: whether llama.cpp
        splits the prompts into the same tokens; or ``not_run`` with the reason.
    """
    if importlib.util.find_spec("llama_cpp") is None:
        return Proof([], {"not_run": NOT_INSTALLED})
    rows, expected, texts = _live(adapter, base, onto, prompts, answer_tokens)
    gc.collect()
    with _base_file(adapter, base, as_adapter) as base_file:
        model = llama_model(base_file or file, file if as_adapter else None, len(rows[0]))
        try:
            equal = all(
                model.tokenize(text.encode(), add_bos=False, special=False) == ids
                for text, ids in texts
            )
            agreed, divergence = 0, 0.0
            for row, logits in zip(rows, expected, strict=True):
                there = _logits(model, row)[-1 - len(logits) : -1]
                p, q = logits.log_softmax(-1), there.log_softmax(-1)
                agreed += int((logits.argmax(-1) == there.argmax(-1)).sum())
                divergence += float((p.exp() * (p - q)).sum())
        finally:
            model.close()
    positions = sum(len(logits) for logits in expected)
    figures = {
        "agreement": agreed / positions,
        "kl": divergence / positions,
        "positions": positions,
        "tokens_equal": equal,
    }
    problems = []
    if not equal:
        problems.append("llama.cpp splits text into other tokens than the model's tokenizer")
    if not figures["agreement"] >= LEAST_AGREEMENT:
        problems.append(
            f"llama.cpp chooses the adapter's next token in {figures['agreement']:.0%} of the "
            f"positions; expected at least {LEAST_AGREEMENT:.0%}"
        )
    return Proof(problems, figures)


def llama_model(file: Path, adapter: Path | None, length: int) -> Any:
    """A GGUF opened by llama.cpp, with room for ``length`` tokens and the logits of each."""
    from llama_cpp import Llama

    return Llama(
        str(file),
        lora_path=str(adapter) if adapter else None,
        n_ctx=max(64, length + 1),
        n_batch=max(64, length + 1),
        logits_all=True,
        verbose=False,
    )


def _logits(model: Any, row: list[int]) -> Tensor:
    model.reset()
    model.eval(row)
    return torch.from_numpy(model.scores[: len(row)].copy()).float()


@torch.no_grad()
def _live(
    adapter: Path, base: str, onto: str, prompts: int, answer_tokens: int
) -> tuple[list[list[int]], list[Tensor], list[tuple[str, list[int]]]]:
    """Prompts with the live adapter's greedy answers, its logits there, and texts with tokens."""
    settings = run_settings(adapter)
    stored: dict[str, Any] = {}
    if settings is not None:
        names = ("block_size", "double_quant", "dtype")
        stored = {name: getattr(settings.model, name) for name in names}
    model, tokenizer = load_model(base, quantize=None if onto == "original" else onto, **stored)
    load_adapter(model, adapter)
    tokenizer = adapter_tokenizer(adapter, tokenizer)
    model.train(False)
    texts = [text for text in TEXT.read_text(encoding="utf-8").split("\n\n") if len(text) > 80]
    pieces = [(text, tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    starts = [[*begin, *ids[:PROMPT_TOKENS]] for _, ids in pieces if len(ids) >= PROMPT_TOKENS]
    ids = torch.tensor((starts * prompts)[:prompts])
    for _ in range(answer_tokens):  # short rows: the whole row is read again for each token
        chosen = model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, chosen], dim=1)
    logits = [model(input_ids=row[None]).logits[0, -1 - answer_tokens : -1].float() for row in ids]
    return ids.tolist(), logits, pieces[:prompts]


@contextlib.contextmanager
def _base_file(adapter: Path, base: str, wanted: bool) -> Iterator[Path | None]:
    """A GGUF of the base: the one it came from, or one written for the occasion."""
    if not wanted:
        yield None
        return
    with original_gguf(base) as found:
        if found is not None:
            yield found
            return
    from graftlm.export.gguf.merged_file import write_base

    with tempfile.TemporaryDirectory(prefix="graftlm-") as folder:
        file = Path(folder) / "base.gguf"
        write_base(file, adapter, base)
        yield file
