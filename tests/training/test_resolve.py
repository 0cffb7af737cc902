"""From a request to a run: every setting has a value, and a run that goes on keeps its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import graftlm
from graftlm.config import ResolvedConfig, RunConfig, recorded_config, validate
from graftlm.errors import ArtifactError, ConfigError
from graftlm.training import rows as source_rows
from graftlm.training import run
from graftlm.training.resolve import Facts, needs_plan, resolve

FACTS = Facts(sequences=20, dtype="bfloat16", chat_template="chatml", positions_at_once=512)


def request(**sections: Any) -> RunConfig:
    tree: dict[str, Any] = {"model": {"name": "m"}, "data": {"train": "rows.jsonl"}}
    return validate(RunConfig, tree | sections)


def values(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in values(value)]
    return [tree]


@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
def test_a_run_has_no_auto_and_no_null(method: str) -> None:
    settings = resolve(request(method=method), FACTS)
    assert isinstance(settings, ResolvedConfig)
    found = values(settings.model_dump(mode="json"))
    assert None not in found
    assert "auto" not in found
    assert settings.train.learning_rate == (2e-5 if method == "full" else 2e-4)
    assert settings.model.dtype == ("float32" if method == "full" else "bfloat16")
    assert settings.train.micro_batch_tokens == 512


def test_what_was_said_is_kept() -> None:
    said = {"learning_rate": 1e-3, "micro_batch_tokens": 0, "steps": 7, "epochs": 3.0}
    settings = resolve(request(train=said, model={"name": "m", "dtype": "float16"}), FACTS)
    assert said.items() <= settings.train.model_dump().items()
    assert settings.model.dtype == "bfloat16"  # the facts are of the type that was asked for


@pytest.mark.parametrize(
    ("train", "steps"),
    [
        ({"epochs": 1.0, "batch_size": 8}, 3),
        ({"epochs": 2.5, "batch_size": 2}, 25),
        ({"epochs": 0.01, "batch_size": 8}, 1),
        ({"steps": 7}, 7),
    ],
)
def test_epochs_become_steps(train: dict[str, Any], steps: int) -> None:
    assert resolve(request(train=train), FACTS).train.steps == steps


def test_a_run_is_not_resolved_while_a_plan_is_missing() -> None:
    open_ = request(method="auto", memory="2GB", train={"gradient_checkpointing": "auto"})
    assert [text.split()[0] for text in needs_plan(open_)] == [
        "method",
        "train.gradient_checkpointing",
        "memory",
    ]
    with pytest.raises(ValueError, match="a plan must come first"):
        resolve(open_, FACTS)


def whole_run(model: Path, rows: Path, out: Path, **train: Any) -> RunConfig:
    return request(
        method="lora",
        out=str(out),
        model={"name": str(model)},
        data={"train": str(rows), "max_length": 64},
        lora={"rank": 4},
        train={"steps": 3, "batch_size": 2} | train,
    )


def test_python_with_auto_does_what_the_command_does(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows become tokens once: the plan is given their lengths."""
    monkeypatch.setenv("GRAFTLM_CACHE", str(tmp_path / "cache"))
    reads, real = [], source_rows.load_examples

    def counting(*arguments: Any, **named: Any) -> Any:
        reads.append(arguments[0])
        return real(*arguments, **named)

    monkeypatch.setattr(source_rows, "load_examples", counting)
    asked = whole_run(tiny_llama, rows_file, tmp_path / "run", gradient_checkpointing="auto")
    asked = asked.model_copy(update={"method": "auto", "memory": "8GB"})
    assert graftlm.run(asked, progress=False).method == "lora"
    recorded = recorded_config(tmp_path / "run" / "config.yaml")
    assert isinstance(recorded, ResolvedConfig)
    assert (recorded.method, recorded.train.gradient_checkpointing) == ("lora", False)
    assert reads == [str(rows_file)]


def old_config(model: Path, rows: Path) -> str:
    """A `config.yaml` as it was written when a null stood for a default."""
    return f"""\
method: lora
memory: null
out: run
model: {{name: '{model}', dtype: auto, embeddings: keep}}
data: {{train: '{rows}', eval: null, max_length: 64, chat_template: auto}}
lora: {{rank: 4}}
train:
  steps: 3
  epochs: 1.0
  batch_size: 2
  micro_batch_tokens: null
  learning_rate: null
  eval_steps: null
  save_steps: null
  early_stopping_patience: null
  gradient_checkpointing: false
"""


def test_a_run_of_an_older_version_goes_on_and_is_recorded_in_full(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    whole, old = tmp_path / "whole", tmp_path / "old"
    run(whole_run(tiny_llama, rows_file, whole, save_steps=1, keep_checkpoints=9), progress=False)
    shutil.copytree(whole, old)
    for leaving in ("adapter", "checkpoints/step-2", "checkpoints/step-3"):
        shutil.rmtree(old / leaving)
    (old / "config.yaml").write_text(old_config(tiny_llama, rows_file))
    asked = validate(RunConfig, yaml.safe_load(old_config(tiny_llama, rows_file)))
    result = run(asked.model_copy(update={"out": str(old)}), resume=True, progress=False)
    assert result.finished
    for name in ("adapter", "checkpoints/step-3"):
        file = f"{name}/adapter_model.safetensors"
        assert (whole / file).read_bytes() == (old / file).read_bytes()
    assert isinstance(recorded_config(old / "config.yaml"), ResolvedConfig)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"\x00\xff\xfe", "cannot read"),
        (b"method: lora\nnonsense: 1\n", "nonsense"),
        (b"method: auto\n", "method is auto"),
        (b"a: &a [1]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]\n"
         b"c: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c]\n"
         b"e: &e [*d, *d, *d, *d, *d, *d, *d, *d, *d, *d]\nf: [*e, *e, *e, *e, *e, *e, *e]\n",
         "stands for over"),
        (b"method: lora\nmethod: qlora\n", "given twice"),
    ],
)  # fmt: skip
def test_settings_of_a_run_that_cannot_be_read_are_refused(
    text: bytes, why: str, tmp_path: Path
) -> None:
    from graftlm.adapters.adapter_folder import recorded_settings

    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "provenance.json").write_text("{}")
    (tmp_path / "config.yaml").write_bytes(text)
    with pytest.raises(ArtifactError, match=why):
        recorded_settings("base", tmp_path)


def test_a_resumed_run_may_not_change_its_chat_template(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    asked = whole_run(tiny_llama, rows_file, tmp_path / "run")
    run(asked, progress=False)
    recorded = recorded_config(tmp_path / "run" / "config.yaml")
    assert recorded.data.chat_template == "plain"  # what auto comes to for this tokenizer
    data = asked.data.model_copy(update={"chat_template": "chatml"})
    with pytest.raises(ConfigError, match=r"data\.chat_template"):
        run(asked.model_copy(update={"data": data}), resume=True, progress=False)
