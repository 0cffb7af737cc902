"""Which modules multiply by their weight; the oracle is the module's own forward pass."""

from __future__ import annotations

import contextlib
from typing import Any

import peft
import pytest
import torch
import transformers
from peft.tuners import tuners_utils
from torch import nn

from graftlm._compat import peft_mamba
from graftlm.adapters import add_lora
from graftlm.adapters.layers import linear_shape, multiplies_otherwise
from graftlm.config import LoRAConfig
from graftlm.errors import TargetError
from tests.oracles.tiny_architectures import tiny_model


class Doubled(nn.Linear):
    """Multiplies as `nn.Linear`, and then by its own factor."""

    factor = 2.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.factor


class Same(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T + self.bias


def test_a_subclass_is_judged_by_what_it_computes() -> None:
    assert linear_shape(nn.Linear(5, 3)) == (3, 5)
    assert linear_shape(Same(5, 3)) == (3, 5)
    assert linear_shape(Doubled(5, 3)) is None
    one = Doubled(5, 3)
    one.factor = 1.0  # this instance multiplies as usual
    assert linear_shape(one) == (3, 5)
    with torch.device("meta"):
        assert multiplies_otherwise(Doubled(5, 3))
        assert linear_shape(Same(5, 3)) == (3, 5)


@pytest.mark.parametrize(
    ("model_type", "left"),
    [("llama4_text", "router"), ("phimoe", "router"), ("deepseek_v4", "o_a_proj")],
)
def test_routers_and_grouped_layers_are_no_linear_layers(model_type: str, left: str) -> None:
    model: nn.Module = tiny_model(model_type)
    report = add_lora(model, LoRAConfig(rank=4))
    assert not report.notes or "failed" not in report.notes[-1]
    places = [name for name, _ in model.named_modules() if name.endswith(left)]
    assert places
    assert not set(places) & set(report.adapted)
    assert "outside any linear layer" in report.skipped[places[0]]


@pytest.mark.parametrize("name", ["in_proj", "out_proj", "conv1d", "o_proj"])
@pytest.mark.parametrize("kind", [*sorted(peft_mamba.MODELS), "bamba", "jamba", "llama"])
def test_peft_refuses_the_same_layers_of_mamba(kind: str, name: str) -> None:
    model: Any = nn.Module()
    model.config = transformers.PretrainedConfig()
    model.config.model_type = kind
    here = bool(peft_mamba.refused_by_peft(model.config, [f"a.{name}"]))
    with pytest.raises(ValueError, match="incompatible") if here else contextlib.nullcontext():
        tuners_utils._check_lora_target_modules_mamba(peft.LoraConfig(), model, name)


@pytest.mark.parametrize("model_type", ["mamba", "mamba2"])
def test_what_peft_refuses_is_left_out_and_named(model_type: str) -> None:
    model: nn.Module = tiny_model(model_type)
    report = add_lora(model, LoRAConfig(rank=4))
    assert not any(name.endswith("out_proj") for name in report.adapted)
    assert any("PEFT refuses" in note for note in report.notes)
    with pytest.raises(TargetError, match=r"PEFT refuses adapters on .*out_proj"):
        add_lora(tiny_model(model_type), LoRAConfig(rank=4, targets=("out_proj",)))
