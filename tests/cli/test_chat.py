"""`graftlm chat`: its commands, and an answer that is stopped."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from graftlm.cli import _answers
from graftlm.cli.app import main

TEMPLATE = (
    "{% if tools %}[{{ tools | tojson }}]{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def spoken(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import shutil

    folder = tmp_path_factory.mktemp("spoken") / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def talk(monkeypatch: Any, capsys: Any, model: Path, lines: str, *words: str) -> Any:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    named = [str(model), "--max-new-tokens", "5", "--temperature", "0", *words]
    monkeypatch.setattr(sys, "argv", ["graftlm", "chat", *named])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code or 0, *capsys.readouterr()


def test_commands_of_the_talk(spoken: Path, monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    asked: list[str] = []
    real = _answers.written

    def written(writer: Any, ask: Any) -> Any:
        asked.append(writer.tokenizer.decode(ask.ids))
        return real(writer, ask)

    monkeypatch.setattr(_answers, "written", written)
    rows = tmp_path / "rows.jsonl"
    lines = ["one", "two", f"/save {rows}", "/reset", "three", "/system be brief", "four",
             f"/save {rows}", f"/save {tmp_path}", "/nonsense", "/exit", "never"]  # fmt: skip
    tools = tmp_path / "tools.json"
    tools.write_text('[{"type": "function", "function": {"name": "book"}}]')
    code, out, err = talk(
        monkeypatch, capsys, spoken, "\n".join(lines), "--system", "be", "--tools", str(tools)
    )
    assert code == 0
    assert len(asked) == 4
    assert all('"book"' in text for text in asked)
    assert "<user>one\n<assistant>" in asked[1]
    assert "<user>two" in asked[1]
    assert "one" not in asked[2]
    assert "<system>be\n" in asked[2]
    assert "<system>be brief\n<user>four" in asked[3]
    first, second = (json.loads(line)["messages"] for line in rows.read_text().splitlines())
    assert [m["role"] for m in first] == ["system", "user", "assistant", "user", "assistant"]
    assert second[0]["content"] == "be brief"
    assert first[2]["content"] in out
    assert "/nonsense: not known" in err
    assert str(tmp_path) in err


def test_interrupts_stop_the_answer_and_not_the_talk(
    spoken: Path, monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    real, count = _answers.written, 0

    def written(writer: Any, ask: Any) -> Any:
        nonlocal count
        count += 1
        for number, row in enumerate(real(writer, ask)):
            if count == 1 and number == 1:
                os.kill(os.getpid(), signal.SIGINT)
            yield row

    monkeypatch.setattr(_answers, "written", written)
    rows = tmp_path / "rows.jsonl"
    code, out, _ = talk(monkeypatch, capsys, spoken, f"one\ntwo\n/save {rows}\n")
    assert code == 0
    assert " …" in out
    messages = json.loads(rows.read_text())["messages"]
    assert len(messages[1]["content"]) < len(messages[3]["content"])


@pytest.mark.parametrize("text", ["{", '"x"', "[1]"])
def test_wrong_tools_are_refused(
    text: str, spoken: Path, monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    (tmp_path / "tools.json").write_text(text)
    code, _, err = talk(
        monkeypatch, capsys, spoken, "hi\n", "--tools", str(tmp_path / "tools.json")
    )
    assert code == 2
    assert "--tools" in err


def test_models_without_a_shared_cache_are_talked_to(tiny_tokenizer: Any) -> None:
    import torch
    from transformers import MambaConfig, MambaForCausalLM

    from graftlm.models.decoding.row import Ask
    from graftlm.models.decoding.whole import WholeAnswers, writer_for

    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=260, hidden_size=16, num_hidden_layers=1, state_size=4, eos_token_id=257
    )
    writer = writer_for(MambaForCausalLM(config).train(False), tiny_tokenizer)
    assert isinstance(writer, WholeAnswers)
    [row] = _answers.written(writer, Ask((1, 2, 3), 4))
    assert row.piece == row.text
    assert row.reason in ("stop", "length")
