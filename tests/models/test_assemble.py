"""One function builds the model for loading and for planning, and says what it replaced."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from graftlm.config import ModelConfig, RunConfig, TrainConfig
from graftlm.errors import ModelError
from graftlm.models import assembly_report, load_weights
from graftlm.models.assemble import REPLACEMENTS, assemble
from graftlm.planning import fake_model
from tests.oracles.model_families import FAMILIES, tiny_config, tiny_model


def classes(model: Any) -> list[tuple[str, str]]:
    return [(name, type(module).__name__) for name, module in model.named_modules()]


def planned(family: str, **settings: Any) -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    config = RunConfig(
        method="full",
        model=ModelConfig(**settings),
        train=TrainConfig(gradient_checkpointing=False),
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        return fake_model.build(tiny_config(family), config, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_planned_is_what_is_loaded(family: str, tmp_path: Path) -> None:
    tiny_model(family).save_pretrained(tmp_path)
    loaded, plan = load_weights(tmp_path, quantize=None), planned(family)
    assert classes(loaded) == classes(plan)
    assert assembly_report(loaded) == assembly_report(plan)
    shapes = [[(n, p.shape, p.dtype) for n, p in m.named_parameters()] for m in (loaded, plan)]
    assert shapes[0] == shapes[1]


def test_the_report_names_every_class_that_changed(tiny_llama: Path) -> None:
    model = load_weights(tiny_llama, embeddings="int8")
    report = assembly_report(model)
    assert report is not None
    before = dict(classes(AutoModelForCausalLM.from_pretrained(tiny_llama)))
    changed = {
        (before[name], kind) for name, kind in classes(model) if before.get(name, kind) != kind
    }
    assert {(r.before, r.after) for r in report.replaced if r.what != "attention"} == changed
    assert {r.what: r.count for r in report.replaced} == {
        "weight_format": 14,
        "norms": 5,
        "gated_units": 2,
        "rotary": 2,
        "embeddings": 1,
        "attention": 1,
    }
    assert "norms: 5 LlamaRMSNorm → RMSNorm" in str(report)


def test_the_report_says_what_could_not_be_replaced(tmp_path: Path) -> None:
    tiny_model("falcon").save_pretrained(tmp_path)
    report = assembly_report(load_weights(tmp_path, quantize=None))
    assert report is not None
    assert report.kept == ("norms", "gated_units", "rotary", "attention")
    assert "as transformers has them: norms, gated_units, rotary, attention" in str(report)


@pytest.mark.parametrize("what", REPLACEMENTS)
def test_each_replacement_can_be_switched_off(what: str, tiny_llama: Path) -> None:
    others = tuple(name for name in REPLACEMENTS if name != what)
    report = assembly_report(load_weights(tiny_llama, quantize=None, replacements=others))
    assert report is not None
    assert {r.what for r in report.replaced} == set(others)
    assert classes(planned("llama", replacements=others)) == classes(
        assemble(tiny_config("llama"), lambda model: model, replacements=others)
    )


def test_the_setting_offers_what_there_is() -> None:
    assert ModelConfig().replacements == REPLACEMENTS
    field = typing.get_type_hints(ModelConfig)["replacements"]
    assert typing.get_args(typing.get_args(field)[0]) == REPLACEMENTS


def test_an_unknown_replacement_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(ModelError, match=r"unknown \['rope'\]"):
        load_weights(tiny_llama, replacements=("rope",))


def test_the_report_is_logged_and_leaves_no_trace_on_the_model(
    tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="graftlm"):
        model = load_weights(tiny_llama, quantize=None)
    assert str(assembly_report(model)) in caplog.text
    model.save_pretrained(tmp_path / "again")
    assert classes(AutoModelForCausalLM.from_pretrained(tmp_path / "again")) == classes(
        AutoModelForCausalLM.from_pretrained(tiny_llama)
    )
