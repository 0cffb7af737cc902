from __future__ import annotations

import pytest
import torch
from torch import nn

from graftlm.adapters import (
    add_lora,
    count_parameters,
    disable_adapters,
    lora_modules,
    lora_parameters,
    remove,
)
from graftlm.config import LoRAConfig
from graftlm.frozen.linear import FrozenLinear
from graftlm.frozen.nf4.frozen_nf4 import FrozenNF4
from tests.oracles.model_families import FAMILIES, tiny_model

IDS = torch.arange(1, 25).view(2, 12)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(IDS).logits
    return result


def adapted(family: str = "llama", **settings: object) -> nn.Module:
    model = tiny_model(family)
    add_lora(model, LoRAConfig(**({"rank": 4, "alpha": 8} | settings)))
    with torch.no_grad():
        for _, parameter in lora_parameters(model):
            parameter.normal_(std=0.2)
    return model


def quantized(model: nn.Module) -> nn.Module:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            model.set_submodule(name, FrozenLinear.of(module, FrozenNF4))
    return model


def test_the_whole_tree_of_trainable_names_and_shapes() -> None:
    model = tiny_model("llama")
    add_lora(model, LoRAConfig(rank=4, rank_pattern={"down_proj": 2}))
    layer = {
        "self_attn.q_proj.lora_A": (4, 64),
        "self_attn.q_proj.lora_B": (64, 4),
        "self_attn.k_proj.lora_A": (4, 64),
        "self_attn.k_proj.lora_B": (32, 4),
        "self_attn.v_proj.lora_A": (4, 64),
        "self_attn.v_proj.lora_B": (32, 4),
        "self_attn.o_proj.lora_A": (4, 64),
        "self_attn.o_proj.lora_B": (64, 4),
        "mlp.gate_proj.lora_A": (4, 64),
        "mlp.gate_proj.lora_B": (128, 4),
        "mlp.up_proj.lora_A": (4, 64),
        "mlp.up_proj.lora_B": (128, 4),
        "mlp.down_proj.lora_A": (2, 128),
        "mlp.down_proj.lora_B": (64, 2),
    }
    trainable = {n: tuple(p.shape) for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == {
        f"model.layers.{index}.{name}": shape for index in (0, 1) for name, shape in layer.items()
    }
    assert trainable == {name: tuple(p.shape) for name, p in lora_parameters(model)}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_step_zero_equals_the_base_and_one_backward_reaches_every_adapter(family: str) -> None:
    expected = logits(tiny_model(family))
    model = tiny_model(family)
    add_lora(model, LoRAConfig(rank=4))
    assert torch.equal(logits(model), expected)
    model(input_ids=IDS, labels=IDS).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if name.endswith("lora_B"):
            assert parameter.grad.any(), name


def test_the_seed_decides_the_adapters() -> None:
    def draw(seed: int) -> list[torch.Tensor]:
        model = tiny_model("llama")
        torch.manual_seed(seed)
        add_lora(model, LoRAConfig(rank=4))
        return [parameter for _, parameter in lora_parameters(model)]

    first, again, other = draw(1), draw(1), draw(2)
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


def test_disabling_gives_the_base_nests_and_survives_exceptions() -> None:
    model, base = adapted(), logits(tiny_model("llama"))
    on = logits(model)
    assert not torch.equal(on, base)
    with disable_adapters(model):
        assert torch.equal(logits(model), base)
        with disable_adapters(model):
            assert torch.equal(logits(model), base)
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), on)
    with pytest.raises(KeyError), disable_adapters(model):
        raise KeyError
    assert torch.equal(logits(model), on)


def test_removing_gives_back_the_base() -> None:
    model = adapted()
    names = [name for name, _ in tiny_model("llama").named_modules()]
    remove(model)
    assert [name for name, _ in model.named_modules()] == names
    assert torch.equal(logits(model), logits(tiny_model("llama")))


def test_the_report_counts_a_4_bit_weight_by_its_elements() -> None:
    plain = add_lora(tiny_model("llama"), LoRAConfig(rank=4))
    packed = add_lora(quantized(tiny_model("llama")), LoRAConfig(rank=4))
    assert plain == packed


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2"])
def test_the_report_counts_every_parameter_once(family: str) -> None:
    model = tiny_model(family)
    before = sum(parameter.numel() for parameter in model.parameters())
    report = add_lora(model, LoRAConfig(rank=4))
    assert report.frozen_parameters == before
    assert report.trainable_parameters == sum(p.numel() for _, p in lora_parameters(model))
    assert report.total_parameters == count_parameters(model).total
    assert report.adapted == dict.fromkeys(lora_modules(model), 4)


def test_the_report_names_what_was_left_alone_and_why() -> None:
    report = add_lora(tiny_model("llama"), LoRAConfig(rank=4, exclude=("layers.0.mlp.up_proj",)))
    assert report.skipped == {
        "model.embed_tokens": "embedding, not among the targets",
        "model.layers.0.mlp.up_proj": "excluded",
        "lm_head": "output head",
    }
    text = str(report)
    assert "13 modules adapted: q_proj ×2 (rank 4)" in text
    assert "lm_head (output head)" in text
    assert f"{report.trainable_parameters:,} of {report.total_parameters:,}" in text


def test_the_report_says_what_happens_to_tied_weights() -> None:
    report = add_lora(tiny_model("llama-tied"), LoRAConfig(rank=4, targets=("embed_tokens",)))
    assert len(report.notes) == 1
    assert "model.embed_tokens" in report.notes[0]
    assert "merging it unties" in str(report)
    untied = add_lora(tiny_model("llama"), LoRAConfig(rank=4, targets=("embed_tokens",)))
    assert untied.notes == ()
