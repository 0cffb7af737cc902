"""An adapter is used with the chat template it was trained with, wherever it goes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from graftlm.adapters import add_lora
from graftlm.adapters.adapter_tokenizer import adapter_tokenizer
from graftlm.adapters.peft_format import load_adapter, save_adapter
from graftlm.config import LoRAConfig, RunConfig, validate
from graftlm.data import render_prompt
from graftlm.data.templates import template_text
from graftlm.errors import ArtifactError
from graftlm.exporting.merge import merge_to_folder
from graftlm.models import load_model, load_tokenizer
from graftlm.training import run

CHAT = [{"role": "user", "content": "hello"}]
VICUNA = "<s>USER: hello\nASSISTANT: "


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A run on chats, by a template the tokenizer does not bring."""
    folder = tmp_path_factory.mktemp("chats")
    row = {"messages": [*CHAT, {"role": "assistant", "content": "good day"}]}
    (folder / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 4)
    tree = {
        "method": "lora",
        "out": str(folder / "run"),
        "model": {"name": str(tiny_llama)},
        "data": {"train": str(folder / "rows.jsonl"), "chat_template": "vicuna"},
        "lora": {"rank": 2},
        "train": {"steps": 1, "batch_size": 2},
    }
    run(validate(RunConfig, tree), progress=False)
    return folder / "run"


def prompt_of(tokenizer: Any) -> str:
    text: str = tokenizer.decode(render_prompt(CHAT, tokenizer))
    return text


@pytest.mark.parametrize("part", ["", "adapter", "checkpoints/step-1"])
def test_the_template_of_training_comes_back_with_the_adapter(
    part: str, trained: Path, tiny_llama: Path
) -> None:
    base = load_tokenizer(tiny_llama)
    tokenizer = adapter_tokenizer(trained / part, base)
    assert prompt_of(tokenizer) == VICUNA
    assert tokenizer.chat_template == template_text("vicuna", base)
    assert tokenizer.get_vocab() == load_tokenizer(tiny_llama).get_vocab()
    assert prompt_of(load_tokenizer(tiny_llama)) != VICUNA


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_other_tools_find_the_template_in_the_adapter(trained: Path, tiny_llama: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(trained / "adapter")
    text = theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert text == VICUNA
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    assert peft.PeftModel.from_pretrained(base, trained / "adapter") is not None


def test_a_merged_model_brings_the_template(trained: Path, tmp_path: Path) -> None:
    merge_to_folder(trained, tmp_path / "whole")
    merge_to_folder(trained / "checkpoints" / "step-1", tmp_path / "stopped")
    for folder in (tmp_path / "whole", tmp_path / "stopped"):
        assert prompt_of(load_tokenizer(folder)) == VICUNA


@pytest.mark.parametrize("command", ["chat", "eval"])
def test_commands_use_the_template_of_the_adapter(
    command: str,
    trained: Path,
    tiny_llama: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from graftlm.cli import main

    seen: list[str] = []
    real: Callable[..., Any] = adapter_tokenizer

    def spy(*arguments: Any) -> Any:
        tokenizer = real(*arguments)
        seen.append(prompt_of(tokenizer))
        return tokenizer

    monkeypatch.setattr("graftlm.adapters.open_model.adapter_tokenizer", spy)
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\n"))
    more = {
        "chat": ["--max-new-tokens", "2"],
        "eval": ["--data", str(trained.parent / "rows.jsonl")],
    }[command]
    words = ["graftlm", command, str(tiny_llama), "--adapter", str(trained), *more]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert seen == [VICUNA]
    capsys.readouterr()


def test_an_adapter_without_a_tokenizer_uses_the_bases(tiny_llama: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(tiny_llama, quantize=None)
    add_lora(model, LoRAConfig(rank=2))
    save_adapter(model, tmp_path)
    assert adapter_tokenizer(tmp_path, tokenizer) is tokenizer
    merge_to_folder(tmp_path, tmp_path / "merged")
    assert load_tokenizer(tmp_path / "merged").chat_template is None


def test_a_tokenizer_of_another_vocabulary_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(tiny_llama, quantize=None)
    add_lora(model, LoRAConfig(rank=2))
    tokenizer.add_tokens(["<new>"])
    save_adapter(model, tmp_path, tokenizer=tokenizer)
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(ArtifactError, match=r"1 tokens differ, such as '<new>'"):
        adapter_tokenizer(tmp_path, load_tokenizer(tiny_llama))
    load_adapter(model, tmp_path)
