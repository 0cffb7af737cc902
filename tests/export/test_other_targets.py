"""Export targets `ollama`, `mlx` and `vllm`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import graftlm.export.target as target
from graftlm.data.chat import use_chat_template
from graftlm.data.templates import BUILT_IN
from graftlm.errors import ArtifactError
from graftlm.export.ollama_template import ollama_template
from tests.export.test_gguf import adapter_on, saved_base
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


TALKS = [
    [("user", "a")],
    [("user", "a"), ("assistant", "b"), ("user", "c")],
    [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c {{ d }}")],
]


@pytest.mark.parametrize("template", [*sorted(BUILT_IN), DEFAULT_SYSTEM])
def test_what_ollama_sends_is_what_the_chat_template_renders(template: str) -> None:
    tokenizer = with_template(template)
    if template == "mistral":
        # It puts a space before an answer that it does not put before a generated one.
        with pytest.raises(ArtifactError, match="cannot be written as a TEMPLATE"):
            ollama_template(tokenizer)
        return
    found = ollama_template(tokenizer)
    for talk in TALKS:
        messages = [{"role": role, "content": text} for role, text in talk]
        if talk[0][0] == "system" and found.before_system is None:
            continue
        expected = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        assert found.rendered(messages) == expected.removeprefix(tokenizer.bos_token)


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
    assert "{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n{{ .Response }}</s>" in text
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
