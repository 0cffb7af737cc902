"""The decoder gives each row the answer it has alone, and transformers' answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from graftlm.errors import DataError, ModelError
from graftlm.models import generate_text
from graftlm.models.assemble import assemble
from graftlm.models.capabilities import capabilities
from graftlm.models.decoding.choice import Sampling
from graftlm.models.decoding.decoder import Decoder
from graftlm.models.decoding.row import Ask
from tests.oracles.model_families import FAMILIES, tiny_config

CONTINUED = sorted(set(FAMILIES) - {"opt", "falcon"})
LENGTHS = (5, 17, 1, 9, 30, 3)


def built(family: str, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM

    config = tiny_config(family)

    def fill(empty: Any) -> Any:
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).to(dtype)

    model = assemble(config, fill)
    with torch.no_grad():  # larger weights, so that no two logits are nearly the same
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.train(False)


def prompts() -> list[tuple[int, ...]]:
    draw = torch.Generator().manual_seed(1)
    return [tuple(torch.randint(3, 250, (length,), generator=draw).tolist()) for length in LENGTHS]


def theirs(model: Any, prompt: tuple[int, ...], count: int) -> list[int]:
    out = model.generate(
        torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=257,
        pad_token_id=0,
    )  # fmt: skip
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", CONTINUED)
def test_rows_that_join_and_leave_equal_transformers_one_by_one(
    family: str, tiny_tokenizer: Any
) -> None:
    model = built(family)
    asks = [Ask(p, max_new_tokens=4 + 5 * (n % 3)) for n, p in enumerate(prompts())]
    with Decoder(model, tiny_tokenizer, most_rows=3) as decoder:
        rows = decoder.run(asks)
    for row in rows:
        wanted = theirs(model, row.ask.ids, row.ask.max_new_tokens)
        assert row.new == [token for token in wanted if token != 257]


def test_narrow_rows_equal_transformers(tiny_tokenizer: Any) -> None:
    """In bfloat16, from logits that are as near as its rounding."""
    model = built("gemma3", torch.bfloat16)
    assert capabilities(model).continues_rows
    before = [(name, type(module)) for name, module in model.named_modules()]
    with Decoder(model, tiny_tokenizer) as decoder:
        rows = decoder.run([Ask(p, max_new_tokens=6) for p in prompts()])
    assert [(name, type(module)) for name, module in model.named_modules()] == before
    same = [row.new == theirs(model, row.ask.ids, 6) for row in rows]
    assert sum(same) >= len(same) - 2


def test_the_next_turn_reads_only_what_is_new(tiny_tokenizer: Any) -> None:
    model = built("gemma3")
    first = prompts()[4]
    with Decoder(model, tiny_tokenizer) as decoder:
        [one] = decoder.run([Ask(first, 8)])
        again = (*first, *one.new, 70, 71, 72)
        [two] = decoder.run([Ask(again, 8)])
        [three] = decoder.run([Ask((*first[:20], 9, 9), 8)])
    assert two.reused == len(first) + len(one.new) - (one.reason == "length")
    assert three.reused == 20
    assert two.new == theirs(model, again, 8)
    assert three.new == theirs(model, (*first[:20], 9, 9), 8)


def test_long_prompts_are_read_in_pieces(
    tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graftlm.models.decoding.decoder.PROMPT_TOKENS", 7)
    model = built("mistral")
    with Decoder(model, tiny_tokenizer) as decoder:
        rows = decoder.run([Ask(p, 5) for p in prompts()])
    assert [row.new for row in rows] == [theirs(model, p, 5) for p in prompts()]


def test_seeded_samples_do_not_depend_on_the_rows_beside_them(tiny_tokenizer: Any) -> None:
    model = built("llama")
    asks = [Ask(p, 8, Sampling(1.5, 0.9, seed=n)) for n, p in enumerate(prompts())]
    with Decoder(model, tiny_tokenizer, prefix_bytes=0) as decoder:
        together = [row.new for row in decoder.run(asks)]
        alone = [decoder.run([ask])[0].new for ask in asks]
        other = decoder.run([Ask(asks[4].ids, 8, Sampling(1.5, 0.9, seed=99))])[0].new
    assert together == alone
    assert other != alone[4]


def test_a_cancelled_row_leaves_the_others_as_they_are(tiny_tokenizer: Any) -> None:
    model = built("llama")
    with Decoder(model, tiny_tokenizer) as decoder:
        rows = [decoder.add(Ask(p, 9)) for p in prompts()[:3]]
        decoder.step()
        decoder.step()
        decoder.cancel(rows[0])
        while decoder.busy:
            decoder.step()
    assert rows[0].reason == "cancelled"
    assert len(rows[0].new) == 2
    assert [row.new for row in rows[1:]] == [theirs(model, p, 9) for p in prompts()[1:3]]


def test_prompts_without_room_are_refused(tiny_tokenizer: Any) -> None:
    model = built("gpt2")
    with Decoder(model, tiny_tokenizer) as decoder:
        [row] = decoder.run([Ask((5,) * 120, 50)])
        assert row.tokens <= 8
        with pytest.raises(DataError, match="positions"):
            decoder.add(Ask((5,) * 128))
        with pytest.raises(DataError, match="at least one"):
            decoder.add(Ask(()))


def test_other_models_are_continued_by_transformers(tiny_tokenizer: Any) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=260, hidden_size=16, num_hidden_layers=1, state_size=4, eos_token_id=257
    )
    model = MambaForCausalLM(config).train(False)
    with pytest.raises(ModelError, match="cache"):
        Decoder(model, tiny_tokenizer)
    [answer] = generate_text(model, tiny_tokenizer, [[1, 2, 3]], max_new_tokens=4)
    assert 0 < answer.tokens <= 4


def test_a_failed_prompt_is_told_to_its_asker(
    tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Decoder(built("llama"), tiny_tokenizer) as decoder:
        monkeypatch.setattr(type(decoder), "_read", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            decoder.run([Ask((1, 2))])


def test_rows_that_cannot_mix_take_turns(tiny_tokenizer: Any) -> None:
    model, passes = built("llama"), []

    @contextlib.contextmanager
    def use(names: Sequence[str | None], tokens: int) -> Iterator[None]:
        passes.append(set(names))
        yield

    asks = [Ask(p, 4, adapter="ab"[n % 2]) for n, p in enumerate(prompts())]
    with Decoder(model, tiny_tokenizer, use_adapters=use, mixed=False) as decoder:
        rows = decoder.run(asks)
    assert all(len(names) == 1 for names in passes)
    assert [row.new for row in rows] == [theirs(model, p, 4) for p in prompts()]


def test_answer_ends_where_there_is_enough_and_the_others_go_on(tiny_tokenizer: Any) -> None:
    model = built("llama")
    given = [list(prompt) for prompt in prompts()[:3]]
    whole = generate_text(model, tiny_tokenizer, given, max_new_tokens=20)

    def enough(text: str) -> bool:
        return len(text) >= 3

    cut = generate_text(
        model, tiny_tokenizer, given, max_new_tokens=20, enough=[None, enough, enough]
    )
    assert cut[0] == whole[0]
    for one, all_of_it in zip(cut[1:], whole[1:], strict=True):
        assert one.ids == all_of_it.ids[: len(one.ids)]
        assert len(one.ids) < len(all_of_it.ids)
        assert not one.stopped
