"""Text generation: answers to some prompts, by our decoder or by transformers' `generate`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from graftlm.models.capabilities import capabilities
from graftlm.models.decoding.choice import Sampling
from graftlm.models.decoding.decoder import Decoder
from graftlm.models.decoding.ends import end_tokens, room_after
from graftlm.models.decoding.row import Ask, Row
from graftlm.system.placement import placement_of

__all__ = ["Answer", "answer_of", "continue_ids", "generate_text"]


@dataclasses.dataclass(frozen=True)
class Answer:
    """One continuation.

    Attributes:
        text: without the prompt and without special tokens.
        tokens: tokens generated, the end token included.
        stopped: whether the model produced an end token before ``max_new_tokens``.
        ids: the tokens themselves, without the end token.
    """

    text: str
    tokens: int
    stopped: bool
    ids: tuple[int, ...] = ()


def generate_text(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 200,
    temperature: float = 0.0,
    seed: int = 0,
    stop: Iterable[int] = (),
    enough: Sequence[Callable[[str], bool] | None] | None = None,
) -> list[Answer]:
    """Continue each of ``prompts`` (token ids), several at a time.

    Args:
        model: a causal language model.
        tokenizer: the model's.
        prompts: token ids, one sequence per prompt; lengths may differ.
        max_new_tokens: the longest continuation.
        temperature: 0 chooses the most probable token each time.
        seed: the seed for sampling, if the temperature is above 0; prompt n has seed + n.
        stop: additional tokens that end an answer, such as a chat template's.
        enough: for each prompt, what tells from the text so far that the rest does not matter. A
            model that is continued by transformers writes the answer to its end.

    Raises:
        DataError: a prompt is as long as the model's maximum length.
    """
    if not capabilities(model).continues_rows:
        end = end_tokens(model, tokenizer) | set(stop)
        with torch.inference_mode():
            new = continue_ids(
                model,
                prompts,
                end,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed,
            )
        return [_answer(tokenizer, ids, end) for ids in new]
    ends = frozenset(stop)
    asks = [
        Ask(
            tuple(prompt),
            max_new_tokens,
            Sampling(temperature, seed=seed + n),
            ends,
            enough=None if enough is None else enough[n],
        )
        for n, prompt in enumerate(prompts)
    ]
    with Decoder(model, tokenizer, prefix_bytes=0) as decoder:
        return [answer_of(row, tokenizer) for row in decoder.run(asks)]


def answer_of(row: Row, tokenizer: Any) -> Answer:
    """The answer of a complete row."""
    text = row.text if row.ask.stop_texts else tokenizer.decode(row.new, skip_special_tokens=True)
    return Answer(text, row.tokens, row.reason == "stop", tuple(row.new))


def continue_ids(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    end: Collection[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[int]]:
    """The new tokens after each of ``prompts``, for callers without a tokenizer.

    An answer that ended before the longest one is followed by ends.

    Args:
        model: a causal language model.
        prompts: token ids, one sequence per prompt; lengths may differ.
        end: the tokens that end an answer, at least one.
        max_new_tokens: the longest continuation.
        temperature: 0 chooses the most probable token each time.
        seed: the seed for sampling, if the temperature is above 0.

    Raises:
        DataError: a prompt is as long as the model's maximum length.
    """
    longest = max(len(prompt) for prompt in prompts)
    max_new_tokens = min(max_new_tokens, room_after(model, longest))
    pad = min(end)  # masked on the left, cut off on the right
    placement = placement_of(model)
    device = placement.device
    ids = torch.full((len(prompts), longest), pad, dtype=torch.long, device=device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt, device=device)
        mask[row, longest - len(prompt) :] = 1
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    greedy = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    with placement.seeded(seed):
        output = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(end),
            pad_token_id=pad,
            **(sampling if temperature > 0 else greedy),
        )
    return [row[longest:].tolist() for row in output]


def _answer(tokenizer: Any, new: list[int], end: set[int]) -> Answer:
    stop = next((index for index, token in enumerate(new) if token in end), None)
    kept = new if stop is None else new[:stop]
    text = tokenizer.decode(kept, skip_special_tokens=True)
    return Answer(text, len(kept) + (stop is not None), stop is not None, tuple(kept))
