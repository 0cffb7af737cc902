"""A model that runs from the disk computes what the loaded model does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from graftlm.adapters import add_lora, lora_parameters
from graftlm.adapters.peft_format import load_adapter, save_adapter
from graftlm.config import LoRAConfig
from graftlm.errors import ModelError
from graftlm.frozen.weight import WeightSettings
from graftlm.models import load_model, quantize_folder
from graftlm.models.named_weights import in_format, named_weights
from graftlm.models.without_values import has_no_values
from tests.oracles.mapped_pages import resident_pages
from tests.oracles.model_families import FAMILIES, tiny_model

IDS = torch.arange(1, 25).view(2, 12)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        tiny_model(family).save_pretrained(root / family)
        tiny_tokenizer.save_pretrained(root / family)
    return {family: root / family for family in FAMILIES}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=IDS).logits
    return result


def streamed_logits(model: Any) -> torch.Tensor:
    return model.logits(model.run(IDS)[0])  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_logits_equal_those_of_the_loaded_model(family: str, folders: dict[str, Path]) -> None:
    weights = named_weights(folders[family])
    streamed = weights.streamed()
    assert any(has_no_values(p) for p in streamed.model.parameters())
    expected = logits(load_model(folders[family], quantize=None)[0])
    torch.testing.assert_close(streamed_logits(streamed), expected, rtol=0, atol=2e-5)
    left = [n for n, p in streamed.model.named_parameters() if not has_no_values(p)]
    assert not [name for name in left if name not in weights.joined], left


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_a_base_in_a_format_with_an_adapter_equals_the_loaded_one(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    model, _ = load_model(folders[family], quantize="nf4")
    add_lora(model, LoRAConfig(rank=4))
    with torch.no_grad():
        for _, parameter in lora_parameters(model):
            parameter.normal_(std=0.1)
    save_adapter(model, tmp_path / "adapter", base_name=str(folders[family]))
    weights = named_weights(folders[family])
    streamed = weights.streamed(in_format(weights, "nf4", WeightSettings(), None))
    load_adapter(streamed.model, tmp_path / "adapter")
    torch.testing.assert_close(streamed_logits(streamed), logits(model), rtol=0, atol=5e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_folder_in_a_format_runs_from_the_disk(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    quantize_folder(folders[family], tmp_path / "nf4")
    expected = logits(load_model(tmp_path / "nf4")[0])
    found = streamed_logits(named_weights(tmp_path / "nf4").streamed())
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)


def test_padding_does_not_change_the_tokens_before_it(folders: dict[str, Path]) -> None:
    model = named_weights(folders["llama"]).streamed()
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 7:] = False
    hidden, layers = model.run(IDS, mask, keep_layers=torch.tensor([0, 11, 12, 18]))
    alone, _ = model.run(IDS[1:, :7])
    torch.testing.assert_close(hidden[1, :7], alone[0], rtol=0, atol=1e-5)
    assert {name: len(output) for name, output in layers.items()} == {
        "model.layers.0": 4,
        "model.layers.1": 4,
    }


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's list of mapped pages")
def test_mapped_tables_do_not_stay_in_memory(folders: dict[str, Path]) -> None:
    weights = named_weights(folders["llama"])
    table = weights("model.embed_tokens.weight")
    assert float(table.sum())
    assert resident_pages(folders["llama"])
    streamed_logits(weights.streamed())
    assert resident_pages(folders["llama"]) == 0
    assert torch.equal(table, weights("model.embed_tokens.weight"))


def test_a_weight_that_is_not_given_is_refused(folders: dict[str, Path]) -> None:
    weights = named_weights(folders["llama"])

    def read(name: str) -> torch.Tensor:
        weight = weights(name)
        return torch.full_like(weight, float("nan")) if "layers.1.mlp.up" in name else weight

    with pytest.raises(ModelError, match="from the disk"):
        weights.streamed(read).run(IDS)
