"""Models whose class cannot recompute activations are trained and planned without."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from graftlm.config import ModelConfig, RunConfig, TrainConfig
from graftlm.errors import ConfigError
from graftlm.planning import make_plan
from graftlm.planning.source import Source
from graftlm.training.recompute import recompute_activations
from tests.oracles.tiny_architectures import architectures, tiny_config, tiny_model


def test_a_source_knows_what_the_class_says() -> None:
    for name in ("llama", "ctrl", "jetmoe", "mamba", "xlnet", "gpt2"):
        config = architectures()[name]()
        cls = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        assert Source(config).can_recompute == bool(cls.supports_gradient_checkpointing)


def test_it_is_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigError, match="CTRLLMHeadModel cannot recompute"):
        recompute_activations(tiny_model("ctrl"))


def test_a_plan_does_without_unless_it_was_asked_for() -> None:
    architecture: Any = tiny_config("ctrl")
    config = RunConfig(model=ModelConfig(name="ctrl"))
    common: dict[str, Any] = {"architecture": architecture, "memory": "8GB", "device": "cuda"}
    made = make_plan(config, **common)
    assert {option.method for option in made.options} == {"full", "lora", "qlora"}
    assert not any(option.gradient_checkpointing for option in made.options)
    asked = config.model_copy(update={"train": TrainConfig(gradient_checkpointing=True)})
    with pytest.raises(ConfigError, match="cannot recompute"):
        make_plan(asked, **common)
