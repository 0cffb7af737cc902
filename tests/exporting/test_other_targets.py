"""Export targets `ollama`, `mlx` and `vllm`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import graftlm.exporting.target as target
from graftlm.data.chat import use_chat_template
from graftlm.data.templates import BUILT_IN
from graftlm.errors import ArtifactError
from graftlm.exporting.ollama_template import ollama_template
from tests.exporting.test_gguf import adapter_on, saved_base
from tests.oracles.merging_tokenizer import bpe_tokenizer

DEFAULT_SYSTEM = """\
{%- if messages[0].role != 'system' %}<sys>You are kind.</sys>{% endif -%}
{%- for m in messages %}{% if m.role == 'system' %}<sys>{{ m.content }}</sys>{% elif \
m.role == 'user' %}<u>{{ m.content }}</u>{% else %}<a>{{ m.content }}</a>{% endif %}{% endfor -%}
{%- if add_generation_prompt %}<a>{% endif -%}"""


def with_template(template: str) -> Any:
    tokenizer = bpe_tokenizer()
    if template in BUILT_IN:
        use_chat_template(tokenizer, template)
    else:
        tokenizer.chat_template = template
    return tokenizer


MISTRAL_LAST_SYSTEM = """\
{%- if messages[0].role == 'system' %}{% set s = messages[0].content %}\
{% set talk = messages[1:] %}{% else %}{% set talk = messages %}{% endif %}\
{{- bos_token }}{%- for m in talk %}{% if m.role == 'user' %}\
[INST] {% if loop.last and s is defined %}{{ s + '\n\n' }}{% endif %}{{ m.content }}[/INST]\
{%- else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor -%}"""
"""The system text stands in the last question, as in Mistral's instruct models."""
QWEN3_THOUGHTS = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}\
{%- if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}\
{{- m.content + '<|im_end|>\n' }}{% endfor %}\
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
"""Thoughts are kept in the last answer only."""
PHI3_END = """\
{%- for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}\
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""
"""A whole conversation ends with another token than its answers."""
LLAMA31_DATE = """\
{%- if messages[0].role == 'system' %}{% set s = messages[0].content | trim %}\
{% set talk = messages[1:] %}{% else %}{% set s = '' %}{% set talk = messages %}{% endif %}\
{{- bos_token + '<sys>\nToday: 26 Jul\n\n' + s + '<eot>' }}\
{%- for m in talk %}{{ '<' + m.role + '>\n\n' + m.content | trim + '<eot>' }}{% endfor %}\
{%- if add_generation_prompt %}{{ '<assistant>\n\n' }}{% endif %}"""
"""There is a system turn where the user gives no system text, with a text of its own."""
GEMMA3_FIRST = """\
{{- bos_token }}{%- if messages[0].role == 'system' %}{% set s = messages[0].content + '\n\n' %}\
{% set talk = messages[1:] %}{% else %}{% set s = '' %}{% set talk = messages %}{% endif %}\
{%- for m in talk %}{% set who = 'model' if m.role == 'assistant' else m.role %}\
{{- '<start_of_turn>' + who + '\n' + (s if loop.first else '') + m.content | trim }}\
{{- '<end_of_turn>\n' }}{% endfor %}\
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
GEMMA2_NO_SYSTEM = """\
{{- bos_token }}{%- if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}\
{%- for m in messages %}{% set who = 'model' if m.role == 'assistant' else m.role %}\
{{- '<start_of_turn>' + who + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}\
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
FAMILIES = {
    "default system": DEFAULT_SYSTEM,
    "gemma2": GEMMA2_NO_SYSTEM,
    "gemma3": GEMMA3_FIRST,
    "llama3.1": LLAMA31_DATE,
    "mistral-instruct": MISTRAL_LAST_SYSTEM,
    "phi3": PHI3_END,
    "qwen3": QWEN3_THOUGHTS,
}
"""What is peculiar to each family's own chat template."""
TALKS = [
    [("user", "a")],
    [("user", "a"), ("assistant", "b"), ("user", "c")],
    [("user", "{a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")],
    [("system", "s"), ("user", "a")],
    [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c {{ d }}")],
]


@pytest.mark.parametrize("template", [*sorted(BUILT_IN), *FAMILIES])
def test_what_ollama_sends_is_what_the_chat_template_renders(template: str) -> None:
    tokenizer = with_template(FAMILIES.get(template, template))
    found = ollama_template(tokenizer)
    assert (found.before_system is None) == (template == "gemma2")
    for talk in TALKS:
        messages = [{"role": role, "content": text} for role, text in talk]
        if talk[0][0] == "system" and found.before_system is None:
            continue
        expected = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        assert found.rendered(messages) == expected.removeprefix(tokenizer.bos_token)


@pytest.mark.parametrize(
    ("template", "stop"),
    [("mistral-instruct", "</s>"), ("gemma3", "<end_of_turn>"), ("phi3", "<|end|>")],
)
def test_the_first_special_token_after_an_answer_ends_it(template: str, stop: str) -> None:
    from graftlm.exporting.ollama_folder import _stops

    tokenizer = with_template(FAMILIES[template])
    found = ollama_template(tokenizer)
    assert _stops(found, tokenizer) == [stop]  # as text, where it is no token
    ends = ["<start_of_turn>", "<end_of_turn>", "<|user|>", "<|end|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": ends})
    assert _stops(found, tokenizer) == [stop]


def test_the_template_is_that_of_go() -> None:
    text = ollama_template(with_template(MISTRAL_LAST_SYSTEM)).text()
    last = "eq (len (slice $.Messages $i)) 1"
    assert text == (
        "[INST] {{ range $i, $_ := .Messages }}"
        f'{{{{ if eq .Role "user" }}}}{{{{ if and $.System ({last}) }}}}{{{{ $.System }}}}\n\n'
        f"{{{{ end }}}}{{{{ .Content }}}}{{{{ if {last} }}}}[/INST]{{{{ else }}}}[/INST] "
        f'{{{{ end }}}}{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}'
        f"{{{{ if not ({last}) }}}}</s>[INST] {{{{ end }}}}{{{{ end }}}}{{{{ end }}}}"
    )
    braces = "{{- '{\"a\": {' }}{% for m in messages %}{{ m.content + '{' }}{% endfor %}"
    assert ollama_template(with_template(braces)).before_first == '{"a": {'
    assert (
        '{{ else }}{{ "{" }}"a": {{ "{" }}{{ end }}'
        in ollama_template(with_template(braces)).text()
    )


def test_a_template_that_looks_back_is_refused() -> None:
    counting = (
        "{% for m in messages %}<{{ loop.index }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<a>{% endif %}"
    )
    with pytest.raises(ArtifactError, match="cannot be written as a TEMPLATE"):
        ollama_template(with_template(counting))


def test_an_ollama_folder_holds_the_format_of_the_training(tmp_path: Path) -> None:
    tokenizer = with_template("chatml")
    base = saved_base(tmp_path / "base", "llama", tokenizer)
    (base / "generation_config.json").write_text(json.dumps({"temperature": 0.7, "top_k": 20}))
    adapter = adapter_on(base, tmp_path / "adapter")
    target.export(adapter, "ollama", tmp_path / "out", quantization="q8_0", verify=True)
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert text.startswith('FROM ./model.gguf\nTEMPLATE """{{ if .System }}<|im_start|>system\n')
    assert "<|im_end|>\n<|im_start|>assistant\n" in text
    assert 'PARAMETER stop "</s>"' in text
    assert "PARAMETER temperature 0.7" in text
    assert (tmp_path / "out" / "model.gguf").is_file()


def test_an_mlx_folder_holds_the_transposed_factors(tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base", "llama")
    adapter = adapter_on(base, tmp_path / "adapter")
    report = target.export(adapter, "mlx", tmp_path / "out", verify=True)
    assert report["num_layers"] == 2
    tensors = load_file(tmp_path / "out" / "adapters.safetensors")
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["lora_parameters"]["scale"] == 2.0
    assert "self_attn.q_proj" in settings["lora_parameters"]["keys"]
    own = load_file(adapter / "adapter_model.safetensors")
    key = "model.layers.1.mlp.up_proj"
    assert torch.equal(tensors[f"{key}.lora_a"], own[f"base_model.model.{key}.lora_A.weight"].T)
    assert tensors[f"{key}.lora_b"].shape == (4, 128)
    tensors[f"{key}.lora_b"] *= 2
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "out" / "adapters.safetensors")
    proof = target.target_named("mlx").verify(adapter, str(base), tmp_path / "out")
    assert proof.problems == [f"{key} is the first layer that differs"]


def test_mlx_refuses_ranks_that_differ(tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base", "llama")
    adapter = adapter_on(base, tmp_path / "adapter", rank_pattern={"v_proj": 2})
    with pytest.raises(ArtifactError, match="one rank and one scale"):
        target.export(adapter, "mlx", tmp_path / "out")


def test_vllm_is_told_the_rank(tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base", "llama")
    adapter = adapter_on(base, tmp_path / "adapter", rank=24)
    report = target.export(adapter, "vllm", tmp_path / "out", verify=True)
    assert "--max-lora-rank 32" in report["command"]
