"""What `check` knows of a model, training asks too: table, positions, markers, template."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers

import graftlm
from graftlm.config import DataConfig, TrainConfig
from graftlm.data import Encoder, load_examples
from graftlm.data.audit.audit import audit
from graftlm.data.audit.fits import ModelLimits, fit_findings, limits_of, untrained_findings
from graftlm.data.chat import ChatFormat
from graftlm.errors import DataError
from graftlm.models.embedding_rows import embedding_rows
from graftlm.training.data_checks import check_rows
from tests.oracles.chat_families import LLAMA3, tokenizer_of

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
DATED = (
    "{% if not date is defined %}{% set date = strftime_now('%d %b %Y') %}{% endif %}"
    "Today: {{ date }}\n" + LLAMA3
)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (transformers.GPT2Config(), ModelLimits(50257, 1024, True)),
        (transformers.OPTConfig(), ModelLimits(50272, 2048, True)),
        (transformers.GPTJConfig(), ModelLimits(50400, 2048, True)),
        (transformers.LlamaConfig(), ModelLimits(32000, 2048, False)),
        (transformers.Qwen2Config(), ModelLimits(151936, 32768, False)),
        (transformers.BloomConfig(), ModelLimits(250880, None, True)),
    ],
)
def test_limits_are_read_from_the_configuration(config, expected):
    assert limits_of(config.to_dict()) == expected


def test_a_fixed_table_is_one_that_the_model_itself_cannot_exceed():
    """The live oracle: a tiny GPT-2 raises beyond its positions, a tiny Llama does not."""
    sizes = {"vocab_size": 32, "max_position_embeddings": 8, "num_hidden_layers": 1}
    gpt2 = transformers.GPT2Config(vocab_size=32, n_positions=8, n_embd=8, n_layer=1, n_head=1)
    llama = transformers.LlamaConfig(
        **sizes, hidden_size=8, intermediate_size=8, num_attention_heads=1
    )
    ids = torch.zeros((1, 9), dtype=torch.long)
    for config, fixed in ((gpt2, True), (llama, False)):
        assert limits_of(config.to_dict()).fixed is fixed
        model = transformers.AutoModelForCausalLM.from_config(config)
        if fixed:
            with pytest.raises(IndexError):
                model(ids)
        else:
            model(ids)


@pytest.mark.parametrize("held", [False, True])
def test_training_refuses_what_check_finds(held, tmp_path):
    tokenizer = tokenizer_of("zephyr")
    rows = load_examples([{"prompt": "a " * 30, "completion": "b"}], tokenizer, DataConfig())
    short = load_examples([{"prompt": "a", "completion": "b"}], tokenizer, DataConfig())
    both = (short, rows) if held else (rows, [])
    gpt2 = {"vocab_size": 10**6, "n_positions": 16}
    with pytest.raises(DataError, match="1 examples are longer than the 16 positions that the"):
        check_rows(*both, tokenizer, DataConfig(), gpt2)
    with pytest.raises(DataError, match=r"embedding \(20 rows\) lacks"):
        check_rows(*both, tokenizer, DataConfig(), {"vocab_size": 20})
    kinds = {f.kind: f.severity for f in fit_findings(rows, limits_of(gpt2))}
    assert kinds == {"positions": "error"}
    encoder = Encoder(tokenizer, DataConfig())
    result = audit(rows, encoder, DataConfig(), limits=limits_of(gpt2))
    assert not result.ok


def test_longer_rows_than_a_rotary_model_was_made_for_are_told(capsys):
    tokenizer = tokenizer_of("zephyr")
    rows = load_examples([{"prompt": "a " * 30, "completion": "b"}], tokenizer, DataConfig())
    config = {"vocab_size": 10**6, "max_position_embeddings": 16, "rope_theta": 1e4}
    check_rows(rows, [], tokenizer, DataConfig(), config)
    assert "longer than the 16 positions that the model was made for" in capsys.readouterr().err


def test_rows_that_are_measured_and_trained_on_are_told(tiny_llama, rows_file, tmp_path, capsys):
    model, tokenizer = graftlm.load_model(str(tiny_llama))
    graftlm.add_lora(model, graftlm.LoRAConfig(rank=2))
    graftlm.train(
        model, tokenizer, rows_file, TrainConfig(steps=1, batch_size=2), out=tmp_path / "run",
        eval_data=rows_file, progress=False,
    )  # fmt: skip
    said = capsys.readouterr().err
    assert "40 of the 40 rows to measure on are trained on too" in said


def test_a_template_that_prints_the_date_is_told(capsys):
    tokenizer = tokenizer_of("llama3")
    config = DataConfig()
    assert not ChatFormat(tokenizer, config).dated
    tokenizer.chat_template = DATED
    rows = load_examples([{"messages": CHAT}], tokenizer, config)
    assert ChatFormat(tokenizer, config).dated
    check_rows(rows, [], tokenizer, config, {})
    assert "prints today's date" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "ends"),
    [("falcon", ("", "<|endoftext|>")), ("qwen3", None), ("llama3", None), ("phi3", None),
     ("mistral", None), ("llama2", None), ("deepseek", None), ("older", None)],
)  # fmt: skip
def test_end_tokens_that_differ_between_turns_are_found(name, ends):
    """The live oracle: what transformers renders after a first and after a last answer."""
    tokenizer = tokenizer_of(name)
    form = ChatFormat(tokenizer, DataConfig())
    assert form.ends == ends
    if name == "falcon":
        text = tokenizer.apply_chat_template(CHAT * 2, tokenize=False)
        assert "hello\n\nUser" in text


def test_an_inner_end_token_stops_generation_too():
    tokenizer = tokenizer_of("llama3")
    tokenizer.chat_template = LLAMA3.replace(
        "+ '<|eot_id|>' %}",
        "+ (eos_token if loop.last and message['role'] == 'assistant' else '<|eot_id|>') %}",
    )
    form = ChatFormat(tokenizer, DataConfig())
    assert form.ends == ("<|eot_id|>", tokenizer.eos_token)
    expected = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot_id|>")}
    assert set(form.end_ids) == expected


def test_markers_with_rows_unlike_all_others_are_untrained(tmp_path):
    draw = np.random.default_rng(0)
    table = draw.normal(size=(400, 16)).astype(np.float32)
    table[7] *= 1e-3
    table[9] = table[8]
    markers = {"<a>": table[6], "<tiny>": table[7], "<b>": table[8], "<copy>": table[9]}
    [finding] = untrained_findings(markers, table)
    assert "'<tiny>', '<copy>'." in finding.message
    assert untrained_findings({"<a>": table[6], "<b>": table[8]}, table) == []


def test_rows_of_the_table_are_those_of_the_loaded_model(tiny_llama):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    rows = embedding_rows(tiny_llama, [3, 257])
    assert np.array_equal(rows, model.get_input_embeddings().weight[[3, 257]].detach().numpy())
    assert embedding_rows(tiny_llama, [260]) is None


def test_generation_keeps_within_fixed_positions(tiny_tokenizer):
    config = transformers.GPT2Config(
        vocab_size=260, n_positions=16, n_embd=8, n_layer=1, n_head=1, eos_token_id=257,
        bos_token_id=256,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    [answer] = graftlm.models.generate_text(model, tiny_tokenizer, [[256, 5, 6]], max_new_tokens=50)
    assert answer.tokens <= 13
    with pytest.raises(DataError, match="the prompt has 16 tokens"):
        graftlm.models.generate_text(model, tiny_tokenizer, [[5] * 16])


def test_findings_are_json():
    result = audit(
        load_examples([{"messages": CHAT}], tokenizer_of("llama3"), DataConfig()),
        Encoder(tokenizer_of("llama3"), DataConfig()),
        DataConfig(),
    )
    tree = json.loads(json.dumps(result.to_dict()))
    assert tree["kinds"] == {"chat": 1}
    assert tree["asked_text"].endswith("assistant<|end_header_id|>\n\n")
