"""Exports to GGUF, checked by readers that are not ours: transformers' and the gguf library's."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import graftlm.exporting.target as target
from graftlm.adapters import add_lora, lora_parameters
from graftlm.adapters.peft_format import load_adapter, save_adapter
from graftlm.config import LoRAConfig
from graftlm.errors import ArtifactError, ConfigError
from graftlm.exporting.gguf.merged_file import MergedFile
from graftlm.models import load_model
from graftlm.models.gguf_convert import loaded_from_gguf
from tests.oracles.merging_tokenizer import bpe_tokenizer, sentencepiece_like_tokenizer
from tests.oracles.model_families import COMMON, FAMILIES

gguf = pytest.importorskip("gguf")
IDS = torch.arange(1, 25).view(2, 12)
WRITTEN = ["llama", "llama-tied", "qwen2", "qwen3", "mistral", "phi3", "gemma2", "gemma3"]


def config_for(family: str) -> Any:
    import transformers

    name, own = FAMILIES[family]
    tokens = {"vocab_size": 400, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    # The reader takes these from its defaults: the file has no place, or it does not look there.
    read_as = {"gemma2": (256, 256), "gemma3": (256, 256), "qwen3": (128, None)}
    if family in read_as:
        size, scalar = read_as[family]
        own = own | {"head_dim": size} | ({"query_pre_attn_scalar": scalar} if scalar else {})
    layers = {"gemma3": 6}.get(family, 2)
    window = {"sliding_window": None} if family == "mistral" else {}
    return getattr(transformers, name)(
        **(COMMON | own | tokens | {"num_hidden_layers": layers} | window)
    )


def saved_base(folder: Path, family: str, tokenizer: Any = None) -> Path:
    import transformers

    torch.manual_seed(0)
    config = config_for(family)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:  # norms that are all one would hide a wrong offset
            parameter.data.normal_(std=0.2).add_(0.0 if "gemma" in family else 1.0)
    model.save_pretrained(folder)
    (tokenizer or bpe_tokenizer()).save_pretrained(folder)
    return folder


def adapter_on(base: Path, folder: Path, std: float = 0.2, **settings: Any) -> Path:
    torch.manual_seed(1)
    model, _ = load_model(base, quantize=None)
    add_lora(model, LoRAConfig(**({"rank": 4, "alpha": 8} | settings)))
    with torch.no_grad():
        for _, parameter in lora_parameters(model):
            parameter.normal_(std=std)
    save_adapter(model, folder, base_name=str(base))
    return folder


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(input_ids=IDS).logits
    return result


def live(base: Path, adapter: Path) -> torch.Tensor:
    model, _ = load_model(base, quantize=None)
    load_adapter(model, adapter)
    return logits(model)


@pytest.mark.parametrize("family", WRITTEN)
def test_transformers_reads_the_file_as_the_adapter_on_its_base(
    family: str, tmp_path: Path
) -> None:
    base = saved_base(tmp_path / "base", family)
    adapter = adapter_on(base, tmp_path / "adapter")
    out = tmp_path / "out.gguf"
    report = target.export(adapter, "gguf", out, quantization="f32")
    assert report["proof"]["kept"] == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(
        logits(loaded_from_gguf(out)), live(base, adapter), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0"])
def test_each_type_keeps_the_update(kind: str, tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base", "llama")
    adapter = adapter_on(base, tmp_path / "adapter")
    report = target.export(
        adapter, "gguf", tmp_path / "out.gguf", quantization=kind, verify=kind != "q4_0"
    )
    assert report["proof"]["kept"] > 0.9
    assert report["proof"]["tensors"] == 21
    assert report["proof"]["adapted"] == 14


def test_the_tokenizer_of_the_file_gives_the_same_tokens(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for kind, tokenizer in (("a", bpe_tokenizer()), ("b", sentencepiece_like_tokenizer())):
        base = saved_base(tmp_path / kind, "llama", tokenizer)
        adapter = adapter_on(base, tmp_path / f"{kind}-adapter")
        out = tmp_path / f"{kind}.gguf"
        target.export(adapter, "gguf", out)
        read = AutoTokenizer.from_pretrained(tmp_path, gguf_file=out.name)
        for text in ("the quick fox", "xin chào các bạn", "số 1234; ổ!"):
            assert read(text).input_ids == tokenizer(text).input_ids, (kind, text)


def reader(file: Path) -> Any:
    return gguf.GGUFReader(file, "r+")


def proven(adapter: Path, base: Path, file: Path) -> list[str]:
    from graftlm.exporting.gguf.proof import prove
    from graftlm.models.load import load_config

    made = MergedFile("f32")
    merge, plan, tokenizer = made._prepared(adapter, str(base))
    return prove(file, merge, plan, load_config(base), tokenizer.chat_template).problems


def test_the_proof_finds_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    base = saved_base(tmp_path / "base", "llama", tokenizer)
    adapter = adapter_on(base, tmp_path / "adapter")
    out = tmp_path / "out.gguf"
    target.export(adapter, "gguf", out, quantization="f32")
    assert proven(adapter, base, out) == []
    nothing = adapter_on(base, tmp_path / "zero", std=0.0)
    target_file = tmp_path / "base.gguf"
    with pytest.raises(target.ExportError, match="changes no weight"):
        target.export(nothing, "gguf", target_file)
    assert not target_file.exists()

    whole = out.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) * 2 // 3])
    assert "cannot be read again" in proven(adapter, base, tmp_path / "cut.gguf")[0]

    from graftlm.exporting.gguf.merged_file import write_base

    write_base(tmp_path / "plain.gguf", adapter, str(base), "f32")
    swapped = reader(out)
    original = {t.name: t.data for t in reader(tmp_path / "plain.gguf").tensors}
    one = next(t for t in swapped.tensors if t.name == "blk.1.ffn_up.weight")
    one.data[:] = original[one.name]
    swapped.data.flush()
    assert proven(adapter, base, out)[0].startswith("blk.1.ffn_up.weight is the first tensor")

    out.write_bytes(whole.replace(b"{% for m in messages %}", b"{% for m in messagez %}"))
    assert proven(adapter, base, out) == ["the chat template of the training is not in the file"]


def test_what_gguf_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base", "llama")
    adapter = adapter_on(base, tmp_path / "adapter")
    config = (base / "config.json").read_text()
    (base / "config.json").write_text(config.replace('"llama"', '"olmo"'))
    with pytest.raises(ArtifactError, match="models of type 'olmo' are not written as GGUF"):
        target.export(adapter, "gguf", tmp_path / "out.gguf")
    (base / "config.json").write_text(config)
    with pytest.raises(ConfigError, match="expected one of f16, bf16"):
        target.export(adapter, "gguf", tmp_path / "out.gguf", quantization="q3_k")
    words = bpe_tokenizer()
    from tokenizers import pre_tokenizers

    words.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save_pretrained(base)
    with pytest.raises(ArtifactError, match="not known under a name of"):
        target.export(adapter, "gguf", tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_file_holds_the_update_under_one_alpha(rslora: bool, tmp_path: Path) -> None:
    """As llama.cpp computes it: alpha / r · B A, with the rows of W_q and W_k in its order."""
    from graftlm.adapters import lora_modules
    from graftlm.exporting.gguf.architecture import permuted

    base = saved_base(tmp_path / "base", "llama")
    adapter = adapter_on(
        base, tmp_path / "adapter", use_rslora=rslora, alpha_pattern={"v_proj": 32}
    )
    out = tmp_path / "lora.gguf"
    target.export(adapter, "gguf-adapter", out)
    read = gguf.GGUFReader(out)
    alpha = read.fields["adapter.lora.alpha"].contents()
    stored = {t.name: torch.from_numpy(t.data.copy()) for t in read.tensors}
    model, _ = load_model(base, quantize=None)
    load_adapter(model, adapter)
    short = {"q_proj": "attn_q", "v_proj": "attn_v", "down_proj": "ffn_down"}
    seen = 0
    for name, module in lora_modules(model).items():
        if (kind := name.rpartition(".")[2]) in short:
            A, B = (stored[f"blk.{name.split('.')[2]}.{short[kind]}.weight.lora_{f}"] for f in "ab")
            delta = module.delta(module.base.weight)
            expected = permuted(delta, 4) if kind == "q_proj" else delta
            torch.testing.assert_close(alpha / len(A) * B @ A, expected, rtol=1e-5, atol=1e-6)
            seen += 1
    assert seen == 6


def test_an_adapter_on_a_tied_table_is_refused(tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base", "llama-tied")
    adapter = adapter_on(base, tmp_path / "adapter", targets=("embed_tokens", "q_proj"))
    with pytest.raises(ArtifactError, match="one table as embedding and output head"):
        target.export(adapter, "gguf-adapter", tmp_path / "lora.gguf")


@pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="llama-cpp-python is not installed",
)
@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gemma3"])
def test_llama_cpp_says_what_the_adapter_says(family: str, tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base", family, sentencepiece_like_tokenizer())
    adapter = adapter_on(base, tmp_path / "adapter")
    for form in ("gguf", "gguf-adapter"):
        if form == "gguf-adapter" and family == "phi3":
            continue
        report = target.export(
            adapter, form, tmp_path / f"{form}.gguf", quantization="f32", verify=True
        )
        run = report["verified"]["llama_cpp"]
        assert run["agreement"] > 0.97
        assert run["kl"] < 1e-3
        assert run["tokens_equal"]
