"""Rows with their own adapters equal the same rows with that adapter alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from graftlm.adapters.by_row import AdaptersByRow
from graftlm.adapters.inject import activate, add_lora, disable_adapters
from graftlm.config import LoRAConfig
from graftlm.errors import TargetError
from tests.oracles.model_families import tiny_model


def with_adapters(family: str, variants: tuple[str, ...]) -> Any:
    torch.manual_seed(0)
    model = tiny_model(family).train(False)
    for n, variant in enumerate(variants):
        targets = ["q_proj", "down_proj"] if n else "all-linear"
        add_lora(model, LoRAConfig(rank=4, variant=variant, targets=targets), name=f"a{n}")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


@pytest.mark.parametrize("variants", [("lora",), ("lora", "lora"), ("lora", "dora")])
def test_each_row_uses_its_own_adapter(variants: tuple[str, ...]) -> None:
    model = with_adapters("llama", variants)
    ids = torch.randint(0, 250, (5, 7))
    wanted = {}
    with torch.no_grad():
        for name in (f"a{n}" for n in range(len(variants))):
            activate(model, name)
            wanted[name] = model(ids).logits
        with disable_adapters(model):
            wanted[None] = model(ids).logits
        assert (wanted["a0"] - wanted[None]).abs().max() > 0.01
        by_row = AdaptersByRow(model)
        assert by_row.together
        last = f"a{len(variants) - 1}"
        for names in (["a0", None, last, "a0", None], [last] * 5, [None] * 5):
            with by_row.use(names, 7):
                found = model(ids).logits
            for row, name in enumerate(names):
                assert torch.allclose(found[row], wanted[name][row], atol=1e-5)


def test_experts_are_not_computed_together() -> None:
    """An expert sees the tokens routed to it, not the rows of the batch."""
    torch.manual_seed(0)
    model = tiny_model("mixtral").train(False)
    report = add_lora(model, LoRAConfig(rank=4, targets=["q_proj"]), name="attention")
    assert report
    assert AdaptersByRow(model).together


def test_an_unknown_name_is_refused() -> None:
    by_row = AdaptersByRow(with_adapters("llama", ("lora",)))
    with pytest.raises(TargetError, match="'b'"), by_row.use(["b"], 1):
        pass
