"""An export target from outside is one of `graftlm export`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import graftlm
from graftlm.cli import main
from graftlm.errors import ConfigError
from graftlm.exporting import export
from tests.extension import text_card_target
from tests.oracles.model_families import tiny_model


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    model = tiny_model("llama")
    graftlm.add_lora(model, graftlm.LoRAConfig(rank=3))
    graftlm.save_adapter(model, tmp_path / "adapter", base_name="some/base")
    return tmp_path / "adapter"


def test_the_file_takes_at_most_sixty_lines_and_imports_public_names() -> None:
    text = Path(text_card_target.__file__).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert [line for line in text.splitlines() if "graftlm" in line and "import" in line] == [
        "from graftlm.extend import ExportTarget, Proof, register_target"
    ]


def test_the_command_writes_and_verifies_it(
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "card.txt"
    words = ["graftlm", "export", str(adapter), "--to", "text-card", "--out", str(out)]
    monkeypatch.setattr("sys.argv", [*words, "--verify", "--json"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert out.read_text() == "some/base: rank 3\n"
    report = json.loads(capsys.readouterr().out)
    assert report["rank"] == 3
    assert report["verified"] == {"characters": 18}


def test_an_unknown_target_is_answered_with_all_there_are(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected one of gguf, .*, peft, text-card, "):
        export(adapter, "onnx", tmp_path / "out")
    with pytest.raises(ConfigError, match="did you mean 'text-card'"):
        export(adapter, "textcard", tmp_path / "out")
