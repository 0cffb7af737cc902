"""A config.json with impossible values is refused in one message, before anything is built."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from graftlm.errors import ModelError
from graftlm.models import load_model, load_tokenizer
from graftlm.models.config_file import _problems


@pytest.fixture
def changed(tiny_llama: Path, tmp_path: Path) -> Any:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)

    def change(**values: Any) -> Path:
        tree = json.loads((tiny_llama / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(tree | values))
        return folder

    return change


IMPOSSIBLE: list[tuple[str, Any]] = [
    *(("hidden_size", value) for value in (-64, 0, 10**9, "64", 2.5)),
    *(("num_attention_heads", value) for value in (0, -1, 10**9)),
    *(("num_key_value_heads", value) for value in (0, -2)),
    *(("num_hidden_layers", value) for value in (100_000, 9_999, -1, 0, True)),
    *(("hidden_act", value) for value in ("nonsense", 5)),
    *(("vocab_size", value) for value in (-1, 0, 10**12)),
    *(("intermediate_size", value) for value in (-5, 10**12)),
    *(("max_position_embeddings", value) for value in (-1, 0)),
    *(("head_dim", value) for value in (0, -16, 10**9)),
    *(("rope_theta", value) for value in (0, -1, "x", float("nan"))),
    ("rope_scaling", {"rope_type": "linear", "factor": 0}),
    *(("dtype", value) for value in ("nonsense", 7)),
    *(("architectures", value) for value in ("x", [5])),
    *(("attention_dropout", value) for value in (2, 1.0, -0.1, "x")),
]


@pytest.mark.parametrize(("name", "value"), IMPOSSIBLE)
def test_an_impossible_value_is_refused_by_name(name: str, value: Any, changed: Any) -> None:
    folder = changed(**{name: value})
    for read in (load_tokenizer, load_model):
        with pytest.raises(ModelError, match=rf"cannot be of a model:\n{name}"):
            read(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_attention_heads", 3),
        ("rms_norm_eps", "x"),
        ("pad_token_id", 10**9),
        ("rope_parameters", {"rope_type": "no", "rope_theta": 1e4}),
        ("model_type", "nope"),
        ("model_type", 5),
        ("hidden_size", None),
        ("tie_word_embeddings", "x"),
    ],
)
def test_what_only_the_library_finds_is_one_sentence_about_config_json(
    name: str, value: Any, changed: Any
) -> None:
    with pytest.raises(ModelError, match=r"config\.json") as error:
        load_model(changed(**{name: value}))
    assert "tokenizer.json" not in str(error.value)
    assert len(str(error.value)) < 800


def test_all_problems_are_said_at_once(changed: Any) -> None:
    with pytest.raises(ModelError) as error:
        load_model(changed(hidden_size=-1, hidden_act="silly", vocab_size=0))
    assert all(name in str(error.value) for name in ("hidden_size", "hidden_act", "vocab_size"))
    assert "did you mean 'silu'" in str(error.value)


def test_layers_are_compared_with_the_weights(changed: Any) -> None:
    with pytest.raises(ModelError, match=r"9,999: the weights beside it are of 2 layers"):
        load_model(changed(num_hidden_layers=9_999))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b'"x"', b"[" * 5000])
def test_a_config_that_is_no_settings_is_refused(content: bytes, changed: Any) -> None:
    folder = changed()
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        load_tokenizer(folder)


def test_every_architecture_of_transformers_passes() -> None:
    seen = 0
    for kind in {*MODEL_FOR_CAUSAL_LM_MAPPING, *MODEL_FOR_MASKED_LM_MAPPING}:
        try:
            tree = json.loads(json.dumps(kind().to_dict(), default=str))
        except Exception:  # one that has no default values
            continue
        assert list(_problems(tree)) == [], kind.__name__
        seen += 1
    assert seen > 100


def test_a_loss_that_is_no_number_is_a_failure(
    tiny_llama: Path, rows_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from graftlm.cli import main
    from graftlm.training.evaluation import EvalResult

    found = EvalResult(loss=float("nan"), perplexity=float("inf"), rows=1, supervised_tokens=1)
    monkeypatch.setattr("graftlm.training.evaluate", lambda *_: found)
    monkeypatch.setattr("sys.argv", ["graftlm", "eval", str(tiny_llama), "--data", str(rows_file)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert "the loss is nan" in capsys.readouterr().err
