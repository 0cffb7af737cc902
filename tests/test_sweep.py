"""A few rows of `benchmarks/sweep_models.py`: equal, or refused as listed here; no silent fault."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from benchmarks.sweep_model import OneModel
from benchmarks.sweep_models import kind, markdown
from benchmarks.sweep_stages import STAGES, sweep
from benchmarks.sweep_training import planned_config, planned_tensors
from tests.oracles.byte_tokenizer import byte_tokenizer
from tests.oracles.tiny_architectures import architectures

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*Could not find a config file:UserWarning"),
]
MATRIX = Path(__file__).parent.parent / "docs" / "support-matrix.md"
REFUSED = {
    "llama": set(),
    "gpt2": set(),
    "gemma3n_text": set(),
    "mamba": {"int8", "packing"},
    "bert": {"load"},
}
"""What each refuses of `ASKED`: an architecture of each kind."""
ASKED = ("load", "nf4", "int8", "adapt", "loss", "train", "packing", "save", "peft", "merge")


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_each_stage_is_equal_or_refused_in_a_sentence(model_type: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    outcomes = dict(sweep(model_type, tmp_path, byte_tokenizer(), ASKED))
    refused = {stage for stage, outcome in outcomes.items() if outcome.startswith("refused: ")}
    assert refused == REFUSED[model_type], outcomes
    others = {stage: o for stage, o in outcomes.items() if stage not in refused}
    assert all(outcome.startswith("equal") for outcome in others.values()), others
    assert set(outcomes) == ({"load"} if "load" in refused else set(ASKED))


def test_a_weight_without_a_dimension_is_merged(tmp_path: Path) -> None:
    """Apertus has single numbers as weights."""
    outcomes = dict(sweep("apertus", tmp_path, byte_tokenizer(), ("load", "merge")))
    assert all(outcome.startswith("equal") for outcome in outcomes.values()), outcomes


def test_a_layer_that_is_named_as_the_head_stays_dense(tmp_path: Path) -> None:
    """BLT has a second model inside, with an `lm_head`, which transformers does not quantise."""
    outcomes = dict(sweep("blt", tmp_path, byte_tokenizer(), ("load", "quantized")))
    assert all(outcome.startswith("equal") for outcome in outcomes.values()), outcomes


@pytest.mark.parametrize("model_type", ["qwen3_moe", "mamba2"])
def test_a_planned_peak_is_the_allocators(model_type: str, tmp_path: Path) -> None:
    one = OneModel(model_type, tmp_path, byte_tokenizer())
    assert planned_tensors(one, planned_config(one)).endswith("at most")


def test_the_table_shows_every_kind_of_outcome() -> None:
    stages = ("load", "merge")
    rows = {
        "good": {"load": "equal (1e-6)", "merge": "equal (2e-6)"},
        "odd": {"load": "equal (1e-6)", "merge": "DIFFERENT: 0.2 of the spread"},
        "broken": {"load": "TRACEBACK KeyError at x.py:1: y"},
        "left": {"load": "refused: an encoder"},
        "large": {"load": "not tried: still has 77 million parameters"},
    }
    assert [kind(row["load"]) for row in rows.values()] == [
        *("equal", "equal", "TRACEBACK", "refused", "not tried")
    ]
    text = markdown(rows, stages)
    assert "| good | = | = |" in text
    assert "| odd | = | ≠ |" in text
    assert "| broken | ! |  |" in text
    for told in ("odd, merge: 0.2 of the spread", "broken, load: KeyError", "left, load: an enc"):
        assert f"- {told}" in text


def test_the_documented_matrix_has_the_scripts_form() -> None:
    text = MATRIX.read_text(encoding="utf-8")
    assert "| architecture | " + " | ".join(STAGES) + " |" in text
    table = re.findall(r"^\| ([\w-]+) \|(.*)\|$", text.partition("| architecture |")[2], re.M)
    names = [name for name, _ in table]
    assert len(names) >= 60
    assert names == sorted(names)
    assert set(names) <= set(architectures())
    marks = {mark.strip() for _, cells in table for mark in cells.split("|")}
    assert marks <= {"=", "r", "≠", "!", "–", ""}
    for sign, heading in (("r", "refused"), ("≠", "DIFFERENT"), ("!", "TRACEBACK")):
        count = sum(cell.strip() == sign for _, cells in table for cell in cells.split("|"))
        listed = re.search(rf"^## {heading} \((\d+)\)$", text, re.M)
        assert count == (int(listed[1]) if listed else 0)
