from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graftlm.adapters import add_lora, lora_config, lora_modules
from graftlm.adapters.adapted import base_modules
from graftlm.adapters.inject import attach
from graftlm.adapters.targets import Target, adaptable
from graftlm.config import LoRAConfig
from tests.oracles.model_families import tiny_model

MODELS = ["llama", "gpt2", "mixtral"]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(family=st.sampled_from(MODELS), data=st.data())
def test_settings_read_off_a_model_make_the_same_adapters_again(
    family: str, data: st.DataObject
) -> None:
    model = tiny_model(family)
    choices = {name: m for name, m in base_modules(model).items() if adaptable(m)}
    chosen = data.draw(st.lists(st.sampled_from(sorted(choices)), min_size=1, unique=True))
    targets = [
        Target(
            name,
            choices[name],
            data.draw(st.integers(1, 3)),
            data.draw(st.sampled_from([1.0, 8.0, 2.5])),
        )
        for name in choices
        if name in chosen and not name.endswith("wpe")
    ]
    if not targets:
        return
    attach(model, targets, 0.25, use_rslora=True)
    again = tiny_model(family)
    add_lora(again, lora_config(model))

    def described(model: object) -> list[tuple]:
        return [(name, m.rank, m.scaling) for name, m in lora_modules(model).items()]

    assert described(again) == described(model)


def test_plain_settings_read_back_short() -> None:
    model = tiny_model("llama")
    add_lora(model, LoRAConfig(rank=4, alpha=8, targets=("q_proj", "v_proj")))
    config = lora_config(model)
    assert config.targets == ("q_proj", "v_proj")
    assert config.rank_pattern == config.alpha_pattern == {}


def test_a_name_that_ends_another_needs_a_regular_expression() -> None:
    from torch import nn

    model = nn.ModuleDict({"fc": nn.Linear(4, 4), "block": nn.ModuleDict({"fc": nn.Linear(4, 4)})})
    attach(model, [Target("fc", model["fc"], 2, 4.0)], 0.0, use_rslora=False)
    config = lora_config(model)
    assert config.targets == "fc"


def test_a_model_without_adapters_has_no_settings() -> None:
    with pytest.raises(ValueError, match="no adapters"):
        lora_config(tiny_model("llama"))
