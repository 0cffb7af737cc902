"""Flags are settings: of the declared type, and the same as `--set`."""

from __future__ import annotations

import inspect
import typing
from typing import Any

import pytest

from graftlm.cli import _settings as flags
from graftlm.cli.train import train
from graftlm.config import RunConfig, load_run_config
from graftlm.errors import ConfigError

GIVEN = {"str": "x", "int": 3, "float": 0.5}


def declared(name: str) -> Any:
    model: Any = RunConfig
    *sections, last = name.split(".")
    for section in sections:
        model = model.model_fields[section].annotation
    return model.model_fields[last]


def kind_of(parameter: str) -> str:
    hint = typing.get_type_hints(train)[parameter]
    return next(kind.__name__ for kind in typing.get_args(hint) if kind is not type(None))


def test_every_setting_with_a_flag_has_a_parameter() -> None:
    assert flags.FLAGS.keys() <= inspect.signature(train).parameters.keys()


@pytest.mark.parametrize("parameter", sorted(flags.FLAGS))
def test_a_flag_sets_the_setting_it_names(parameter: str) -> None:
    name = flags.FLAGS[parameter]
    assert declared(name) is not None
    value = {"method": "lora", "learning_rate": "auto", "rank": "8"}.get(
        parameter, GIVEN[kind_of(parameter)]
    )
    changed = load_run_config(None, flags.overrides({parameter: value}, [])).model_dump()
    for key in name.split("."):
        changed = changed[key]
    assert str(changed) == str(value)


def test_epochs_take_the_place_of_steps_of_a_file() -> None:
    tree = [(["train", "steps"], 7), *flags.overrides({"epochs": 2.0}, [])]
    assert load_run_config(None, tree).train.steps is None
    both = flags.overrides({"epochs": 2.0, "steps": 9}, [])
    assert load_run_config(None, both).train.steps == 9


def test_a_flag_and_set_that_differ_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.steps: --set says 3, the flag 2"):
        flags.overrides({"steps": 2}, ["train.steps=3"])
    assert flags.overrides({"steps": 2}, ["train.steps=2"])


@pytest.mark.parametrize(
    ("written", "meant"),
    [("train.lr=1", "train.learning_rate"), ("lora.r=4", "lora.rank"), ("lr=1", "learning_rate")],
)
def test_names_of_other_tools_get_a_hint(written: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '.*{meant}'"):
        load_run_config(None, flags.overrides({}, [written]))
