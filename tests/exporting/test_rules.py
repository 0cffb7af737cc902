"""Which target takes which adapter: twelve kinds that PEFT writes; the same asked of settings."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import graftlm.exporting.target as target
from graftlm.config import DataConfig, LoRAConfig, ModelConfig, RunConfig, TrainConfig
from graftlm.errors import ArtifactError, ConfigError
from graftlm.exporting.rules import broken_rules, require_exportable
from graftlm.models import llama_cpp
from tests.exporting.test_gguf import saved_base
from tests.exporting.test_gguf_details import command
from tests.oracles.merging_tokenizer import sentencepiece_like_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

PLAIN = ["q_proj", "v_proj", "down_proj"]
KINDS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    # settings for PEFT, and for each target that refuses the adapter a part of the reason
    "plain": ({}, {}),
    "all-linear": ({"target_modules": "all-linear"}, {}),
    "rslora": ({"use_rslora": True}, {}),
    "alphas": ({"alpha_pattern": {"v_proj": 3}}, {"mlx": "one rank and one scale"}),
    "ranks": ({"rank_pattern": {"v_proj": 2}}, {"mlx": "one rank and one scale"}),
    "rank-24": ({"r": 24}, {}),
    "last-layer": ({"layers_to_transform": [1]}, {}),
    "head": ({"target_modules": [*PLAIN, "lm_head"]}, {"mlx": "not lm_head"}),
    "embedding": ({"target_modules": [*PLAIN, "embed_tokens"]}, {"mlx": "of linear layers"}),
    "dora": (
        {"use_dora": True},
        {
            "gguf": "",
            "gguf-adapter": "llama.cpp has no DoRA",
            "mlx": "mlx-lm has no DoRA",
            "vllm": "vLLM has no DoRA",
        },
    ),
    "bias": (
        {"bias": "lora_only"},
        {"gguf-adapter": "no trained biases", "mlx": "no trained biases", "vllm": "biases"},
    ),
    "whole-modules": (
        {"modules_to_save": ["lm_head"]},
        {"gguf-adapter": "fully trained modules", "mlx": "fully trained", "vllm": "fully trained"},
    ),
}
ADAPTER_TARGETS = ("gguf-adapter", "mlx", "vllm")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_base(
        tmp_path_factory.mktemp("rules") / "base", "llama", sentencepiece_like_tokenizer()
    )


def made_by_peft(base: Path, folder: Path, settings: dict[str, Any]) -> Path:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    options = {"r": 4, "lora_alpha": 8, "target_modules": PLAIN, "task_type": "CAUSAL_LM"}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**(options | settings)))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            parameter.data.normal_(std=0.1)
    adapted.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", list(KINDS))
def test_each_target_names_the_rules_that_an_adapter_breaks(
    kind: str, base: Path, tmp_path: Path
) -> None:
    settings, refusing = KINDS[kind]
    adapter = made_by_peft(base, tmp_path / "adapter", settings)
    again = transformers.AutoModelForCausalLM.from_pretrained(base)
    peft.PeftModel.from_pretrained(again, adapter)  # PEFT reads every kind
    rules = broken_rules(adapter, str(base))
    for name in ADAPTER_TARGETS:
        reason = refusing.get(name)
        assert bool(rules[name]) == (reason is not None), (name, rules[name])
        assert reason is None or any(reason in problem for problem in rules[name]), rules[name]
    for name in ADAPTER_TARGETS:
        if rules[name]:
            with pytest.raises(ArtifactError, match="cannot be exported"):
                target.export(adapter, name, tmp_path / name, base=str(base))
            assert not (tmp_path / name).exists()
        else:
            target.export(adapter, name, tmp_path / name, base=str(base), verify=name == "mlx")


@pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"
)
def test_llama_cpp_computes_every_adapter_that_is_said_to_pass(base: Path, tmp_path: Path) -> None:
    from graftlm.exporting.gguf.merged_file import write_base

    plain = made_by_peft(base, tmp_path / "plain", {})
    write_base(tmp_path / "base.gguf", plain, str(base), "f32")
    ids = [1, *range(260, 290)]
    for kind, (settings, refusing) in KINDS.items():
        if "gguf-adapter" in refusing:
            continue
        adapter = made_by_peft(base, tmp_path / kind / "adapter", settings)
        out = tmp_path / kind / "lora.gguf"
        target.export(adapter, "gguf-adapter", out, base=str(base))
        run = llama_cpp.LlamaCpp(tmp_path / "base.gguf", out, every_logit=True)
        found = run.logits(ids)
        run.close()
        again = transformers.AutoModelForCausalLM.from_pretrained(base)
        live = peft.PeftModel.from_pretrained(again, adapter).eval()
        with torch.no_grad():
            expected = live(input_ids=torch.tensor([ids])).logits[0]
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3, msg=kind)


def test_the_command_lists_every_target(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    adapter = made_by_peft(base, tmp_path / "adapter", {"rank_pattern": {"v_proj": 2}})
    words = ["export", str(adapter), "--base", str(base), "--check"]
    assert command(*words, "--json", monkeypatch=monkeypatch) == 0
    rules = json.loads(capsys.readouterr().out)["targets"]
    assert rules.keys() == set(target.targets())
    assert [name for name, problems in rules.items() if problems] == ["mlx", "ollama"]
    assert "no chat template" in rules["ollama"][0]
    assert command(*words, "--to", "mlx", monkeypatch=monkeypatch) == 1
    assert "mlx: no\n  mlx-lm has one rank" in capsys.readouterr().out
    assert command(*words, "--to", "gguf-adapter", monkeypatch=monkeypatch) == 0
    assert command("export", str(adapter), monkeypatch=monkeypatch) == 2


def settings_for(base: Path, **given: Any) -> RunConfig:
    return RunConfig(
        method=given.pop("method", "lora"),
        model=ModelConfig(name=str(base)),
        data=DataConfig(train="rows.jsonl"),
        lora=LoRAConfig(**given.pop("lora", {})),
        train=TrainConfig(**given),
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"export_to": ("mlx",), "lora": {"rank_pattern": {"v_proj": 2}}},
            "one rank and one scale",
        ),
        ({"export_to": ("gguf",), "method": "full"}, "method is full"),
        ({"export_to": ("gguff",)}, "'gguff' is not registered"),
        (
            {"export_to": ("gguf",), "method": "qlora", "lora": {"merge_aware": "nf4"}},
            "trains through its merge",
        ),
    ],
)
def test_what_a_target_refuses_is_known_before_training(
    given: dict[str, Any], words: str, base: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        require_exportable(settings_for(base, **given))


def test_a_rank_that_vllm_cannot_be_told_is_refused(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = settings_for(base, export_to=("vllm",), lora={"rank": 24})
    require_exportable(wanted)
    monkeypatch.setattr("graftlm.exporting.vllm_folder.RANKS", (8, 16))
    with pytest.raises(ConfigError, match="rank 24 is above 16"):
        require_exportable(wanted)


def test_a_run_that_can_be_exported_begins(base: Path) -> None:
    every = tuple(target.targets())
    require_exportable(settings_for(base, export_to=every))
    require_exportable(settings_for(base))


def test_training_refuses_before_it_reads_a_row(base: Path, tmp_path: Path) -> None:
    import graftlm

    wrong = settings_for(base, export_to=("mlx",), lora={"rank_pattern": {"v_proj": 2}})
    with pytest.raises(ConfigError, match="one rank and one scale"):
        graftlm.run(wrong.model_copy(update={"out": str(tmp_path / "run")}))
    assert not (tmp_path / "run" / "config.yaml").exists()
