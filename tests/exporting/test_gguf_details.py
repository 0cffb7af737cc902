"""What a GGUF keeps of its base's own file, what is refused, and answers of a file by command."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers

import graftlm.exporting.target as target
from graftlm.cli import main
from graftlm.errors import ArtifactError, ConfigError, GraftLMError, ModelError
from graftlm.exporting.gguf.architecture import problems_of
from graftlm.exporting.gguf.merged_file import write_base
from graftlm.exporting.gguf.vocabulary import SPLITS, vocabulary
from graftlm.models import llama_cpp
from tests.exporting.test_gguf import adapter_on, config_for, saved_base
from tests.oracles.merging_tokenizer import bpe_tokenizer, sentencepiece_like_tokenizer

gguf = pytest.importorskip("gguf")
needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"
)
CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


def tensors_in(file: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_base_from_a_gguf_keeps_its_metadata_and_the_tensors_that_do_not_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFTLM_CACHE", str(tmp_path / "cache"))
    folder = saved_base(tmp_path / "base", "llama", sentencepiece_like_tokenizer())
    first = tmp_path / "first.gguf"
    write_base(first, adapter_on(folder, tmp_path / "any"), str(folder), "q8_0")
    adapter = adapter_on(first, tmp_path / "adapter", targets=("q_proj", "down_proj"))
    out = tmp_path / "out.gguf"
    report = target.export(adapter, "gguf", out, quantization="f16")
    before, after = tensors_in(first), tensors_in(out)
    assert before.keys() == after.keys()
    changed = {name for name in after if after[name].data.tobytes() != before[name].data.tobytes()}
    expected = {f"blk.{i}.{name}.weight" for i in range(2) for name in ("attn_q", "ffn_down")}
    assert changed == expected
    assert {after[name].tensor_type.name for name in changed} == {"F16"}
    assert report["kept_from_base"] == len(before) - len(expected)
    assert report["proof"]["kept"] > 0.9
    own, kept = (gguf.GGUFReader(file).fields for file in (first, out))
    for name in own.keys() - {"general.file_type"}:
        if not name.startswith("GGUF."):
            assert kept[name].contents() == own[name].contents(), name


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("llama", {"hidden_act": "gelu"}, "activation is gelu"),
        ("qwen2", {"head_dim": 32}, "heads · head size = hidden size"),
        ("qwen3", {"use_sliding_window": True}, "sliding window"),
        ("mistral", {"sliding_window": 64}, "ignores the sliding window of 64"),
        ("gemma2", {"attn_logit_softcapping": None}, "caps the attention logits"),
        ("gemma2", {"query_pre_attn_scalar": 64}, "llama.cpp takes 256"),
        ("gemma3", {"attention_bias": True}, "no attention biases"),
        ("gemma3", {"layer_types": ["full_attention"] * 6}, "every 6th layer"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic"}}, "no rotary scaling 'dynamic'"),
    ],
)
def test_settings_that_llama_cpp_does_not_compute_are_refused(
    family: str, change: dict[str, Any], words: str
) -> None:
    config = config_for(family)
    assert problems_of(config) == []
    for name, value in change.items():
        setattr(config, name, value)
    assert any(words in problem for problem in problems_of(config)), problems_of(config)


@pytest.mark.parametrize(("rule", "name"), [*SPLITS.items(), ("digits", "smollm")])
def test_a_rule_that_splits_words_is_recognised(rule: str, name: str) -> None:
    tokenizer = bpe_tokenizer()
    own = rule == "digits"
    step = pre_tokenizers.Digits(True) if own else pre_tokenizers.Split(Regex(rule), "isolated")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [step, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own)]
    )
    assert vocabulary(tokenizer, 400).split == ("dbrx" if name == "llama-bpe" else name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [step, pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(False, use_regex=own)]
    )
    with pytest.raises(ArtifactError, match="not known under a name"):
        vocabulary(tokenizer, 400)


@pytest.mark.parametrize(
    ("merges", "possible"),
    [
        ("a b, b c, ab c, a bc", True),
        ("a b, b c, ab c", False),  # llama.cpp would also join a and bc
        ("a b, ab c, b c, a bc", False),  # bc comes between the two ways to make abc
    ],
)
def test_merges_that_no_scores_express_are_refused(merges: str, possible: bool) -> None:
    tokenizer = sentencepiece_like_tokenizer()
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    model = described["model"]
    model["merges"] = [pair.split(" ") for pair in merges.split(", ")]
    bytes_ = {token: place for token, place in model["vocab"].items() if place < 259}
    model["vocab"] = bytes_ | {t: 259 + i for i, t in enumerate(["a", "b", "c", "ab", "bc", "abc"])}
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(described))
    if possible:
        scores = vocabulary(tokenizer, 400).scores
        assert scores is not None
        assert scores[262:265] == [0.0, -1.0, -2.0]
    else:
        with pytest.raises(ArtifactError, match="split some texts into other tokens"):
            vocabulary(tokenizer, 400)


def test_the_end_of_a_turn_is_named() -> None:
    tokenizer = bpe_tokenizer()
    assert "eot" not in vocabulary(tokenizer, 400).special
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    tokenizer.chat_template = CHAT.replace("</s>", "<end>")
    template = tokenizer.chat_template
    end = tokenizer.convert_tokens_to_ids("<end>")
    assert vocabulary(tokenizer, 400).special["eot"] == end
    assert tokenizer.chat_template == template


def command(*words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["graftlm", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@needs_llama_cpp
@pytest.mark.parametrize("form", ["gguf", "gguf-adapter"])
def test_generate_runs_a_file_as_it_runs_the_adapter(
    form: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = CHAT
    base = saved_base(tmp_path / "base", "llama", tokenizer)
    adapter, out = adapter_on(base, tmp_path / "adapter"), tmp_path / "out.gguf"
    target.export(adapter, form, out, quantization="f32")
    words = [str(out)]
    if form == "gguf-adapter":
        write_base(tmp_path / "base.gguf", adapter, str(base), "f32")
        words = [str(tmp_path / "base.gguf"), "--adapter", str(out)]
    asked = ["--prompt", "the quick fox", "--json", "--max-new-tokens", "12"]
    answers = []
    for model in (words, [str(base), "--adapter", str(adapter), "--device", "cpu"]):
        assert command("generate", *model, *asked, monkeypatch=monkeypatch) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1]
    assert answers[0]["format"] == "chat"


@needs_llama_cpp
def test_a_chat_with_a_file_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import io

    tokenizer = sentencepiece_like_tokenizer()
    tokenizer.chat_template = CHAT
    base = saved_base(tmp_path / "base", "llama", tokenizer)
    out = tmp_path / "out.gguf"
    target.export(adapter_on(base, tmp_path / "adapter"), "gguf", out)
    monkeypatch.setattr("sys.stdin", io.StringIO("the fox\nthe dog\n\n"))
    words = ["chat", str(out), "--max-new-tokens", "4", "--temperature", "0"]
    assert command(*words, monkeypatch=monkeypatch) == 0
    captured = capsys.readouterr()
    assert captured.err.count("you>") == 3
    assert "running out.gguf in llama.cpp" in captured.err


def test_without_llama_cpp_a_file_is_opened_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graftlm.api.opening import in_llama_cpp

    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setattr(llama_cpp, "installed", lambda: False)
    assert in_llama_cpp(str(file), None, None) is None
    with pytest.raises(ModelError, match="llama-cpp-python is not installed"):
        in_llama_cpp(str(file), "b.gguf", None)
    with pytest.raises(ModelError, match=r"name a \.gguf file of its base"):
        in_llama_cpp("folder", "b.gguf", None)


@needs_llama_cpp
def test_a_file_that_llama_cpp_refuses_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF and nothing")
    with pytest.raises(ModelError, match=r"llama\.cpp refuses"):
        llama_cpp.LlamaCpp(tmp_path / "a.gguf")


@needs_llama_cpp
@pytest.mark.parametrize(
    ("kind", "width", "types"),
    [("q4_k_m", 256, {"Q4_K", "Q6_K"}), ("q4_k_m", 64, {"Q5_0", "Q8_0"}), ("q6_k", 256, {"Q6_K"})],
)
def test_llama_cpp_makes_its_own_mixtures_and_every_tensor_is_compared(
    kind: str, width: int, types: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"hidden_size": width, "intermediate_size": width, "tie_word_embeddings": False}
    config = config_for("llama")
    config.update(sizes | {"head_dim": width // config.num_attention_heads})
    monkeypatch.setattr("tests.exporting.test_gguf.config_for", lambda _: config)
    base = saved_base(tmp_path / "base", "llama", sentencepiece_like_tokenizer())
    adapter, out = adapter_on(base, tmp_path / "adapter"), tmp_path / "out.gguf"
    report = target.export(adapter, "gguf", out, quantization=kind)
    found = {t.tensor_type.name for t in tensors_in(out).values()}
    assert types <= found <= types | {"F32"}
    assert report["proof"]["kept"] > 0.9
    assert report["proof"]["adapted"] == 14
    assert gguf.GGUFReader(out).fields["general.file_type"].contents() == int(
        gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"]
    )
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["out.gguf"]


@needs_llama_cpp
def test_a_mixture_that_llama_cpp_fails_to_make_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llama_cpp as package

    base = saved_base(tmp_path / "base", "llama", sentencepiece_like_tokenizer())
    adapter, out = adapter_on(base, tmp_path / "adapter"), tmp_path / "out.gguf"

    def fails(_: bytes, made: bytes, __: Any) -> int:
        Path(made.decode()).write_bytes(b"half")
        return 1

    monkeypatch.setattr(package, "llama_model_quantize", fails)
    with pytest.raises(GraftLMError, match="does not write this model as q4_k_m"):
        target.export(adapter, "gguf", out, quantization="q4_k_m")
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def test_a_mixture_needs_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = saved_base(tmp_path / "base", "llama")
    adapter = adapter_on(base, tmp_path / "adapter")
    monkeypatch.setattr("graftlm.exporting.gguf.mixtures.installed", lambda: False)
    with pytest.raises(ConfigError, match=r"q4_k_m is made by llama\.cpp: pip install"):
        target.export(adapter, "gguf", tmp_path / "out.gguf", quantization="q4_k_m")
