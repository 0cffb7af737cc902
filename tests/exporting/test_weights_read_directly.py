"""A merge does what the live adapter does, also where the model reads weights itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from graftlm.exporting.merge import merge_to_folder
from tests.oracles.tiny_architectures import tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out:UserWarning"),
    pytest.mark.filterwarnings("ignore:The following .*_pattern:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*Could not find a config file:UserWarning"),
]
IDS = torch.arange(1, 25).view(2, 12)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(input_ids=IDS, use_cache=False).logits
    return result


@pytest.mark.parametrize("model_type", ["mamba", "jamba", "llama", "mixtral", "gpt2"])
def test_the_merged_folder_equals_the_adapter_in_peft(
    model_type: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model(model_type).save_pretrained(tmp_path / "base")
    targets = ["in_proj", "x_proj", "dt_proj"] if model_type == "mamba" else "all-linear"
    config = peft.LoraConfig(r=4, target_modules=targets)
    theirs: Any = peft.get_peft_model(tiny_model(model_type), config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    theirs.save_pretrained(tmp_path / "adapter")
    report = merge_to_folder(tmp_path / "adapter", tmp_path / "out", base=str(tmp_path / "base"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = logits(theirs)
    assert not torch.allclose(expected, logits(tiny_model(model_type)), atol=1e-2)
    torch.testing.assert_close(logits(merged), expected, atol=2e-4, rtol=2e-4)
    dead = {name.rpartition(".")[2] for name in report["left_out"]}
    assert dead == ({"dt_proj"} if model_type in ("mamba", "jamba") else set())
    assert ("has no effect and is not merged" in capsys.readouterr().err) == bool(dead)
