"""Runs on mixtures of experts: the loss falls, stopped or not, packed, merged on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from graftlm.adapters.peft_format import load_adapter
from graftlm.config import RunConfig, validate
from graftlm.exporting.measured_merge import measured_merge
from graftlm.exporting.merge import merge_to_folder
from graftlm.frozen.experts import FrozenExperts
from graftlm.models import load_model
from graftlm.models.capabilities import capabilities
from graftlm.training import run
from graftlm.training.hooks import Hook
from tests.oracles.mixtures import tiny_mixture

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

IDS = torch.arange(1, 41).view(2, 20)
KINDS = ["qwen3_moe", "mixtral", "gpt_oss"]
BOTH = ["experts.gate_up_proj", "experts.down_proj"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("mixtures")
    for kind in KINDS:
        tiny_mixture(kind).save_pretrained(root / kind)
        tiny_tokenizer.save_pretrained(root / kind)
    return {kind: root / kind for kind in KINDS}


def settings(model: Path, data: Path, out: Path, **more: Any) -> RunConfig:
    tree = {
        "method": more.pop("method", "qlora"),
        "out": str(out),
        "model": {"name": str(model)},
        "data": {"train": str(data), "eval": str(data), "max_length": 64} | more.pop("rows", {}),
        "lora": {"rank": 4, "target_parameters": BOTH} | more.pop("lora", {}),
        "train": {"steps": 6, "batch_size": 8, "learning_rate": 1e-2, "eval_steps": 3} | more,
    }
    return validate(RunConfig, tree)


class PauseAt(Hook):
    def __init__(self, step: int) -> None:
        self.step = step

    def step_ends(self, active: Any) -> None:
        if active.state.step == self.step:
            active.pause()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(IDS).logits
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_trained_resumed_merged_and_opened_it_is_one_model(
    kind: str, folders: dict[str, Path], rows_file: Path, tmp_path: Path
) -> None:
    whole = run(settings(folders[kind], rows_file, tmp_path / "whole"), progress=False)
    assert whole.eval_loss_before is not None
    assert whole.eval_loss_after is not None
    assert whole.eval_loss_after < whole.eval_loss_before - 0.3
    parts = settings(folders[kind], rows_file, tmp_path / "parts")
    assert not run(parts, progress=False, hooks=[PauseAt(2)]).finished
    run(parts, resume=True, progress=False)
    files = [tmp_path / one / "adapter" / "adapter_model.safetensors" for one in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()

    live, _ = load_model(folders[kind], quantize="nf4")
    assert any(isinstance(module, FrozenExperts) for module in live.modules())
    load_adapter(live, tmp_path / "whole")
    expected = logits(live)
    report = merge_to_folder(tmp_path / "whole", tmp_path / "merged", dtype=torch.float32)
    assert report["onto"] == "nf4"
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)

    plain = AutoModelForCausalLM.from_pretrained(folders[kind])
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "whole" / "adapter")
    ours, _ = load_model(folders[kind], quantize=None)
    load_adapter(ours, tmp_path / "whole")
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("to", ["16bit", "nf4"])
@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_the_measured_merge_is_proved_on_experts(
    kind: str, to: str, folders: dict[str, Path], rows_file: Path, tmp_path: Path
) -> None:
    run(settings(folders[kind], rows_file, tmp_path / "run", eval_steps=None), progress=False)
    report = measured_merge(tmp_path / "run", tmp_path / "merged", to=to, data=str(rows_file))
    assert report["proof"]["problems"] == []
    assert report["kept"] > 0.9
    assert report["modules"] == len(load_adapter_names(folders[kind], tmp_path / "run"))
    merged, _ = load_model(tmp_path / "merged", quantize=None)
    live, _ = load_model(folders[kind], quantize="nf4")
    before = logits(live)
    load_adapter(live, tmp_path / "run")
    change = (logits(live) - before).abs().max()
    stored = [module for module in merged.modules() if isinstance(module, FrozenExperts)]
    assert bool(stored) == (to == "nf4")
    assert (logits(merged) - logits(live)).abs().max() < (0.5 if stored else 0.01) * change


def load_adapter_names(folder: Path, adapter: Path) -> list[str]:
    model, _ = load_model(folder, quantize=None)
    return list(load_adapter(model, adapter).adapted)


def test_packed_rows_are_routed_as_they_are_alone(
    folders: dict[str, Path], rows_file: Path, tmp_path: Path
) -> None:
    model, _ = load_model(folders["qwen3_moe"], quantize="nf4")
    assert capabilities(model).keeps_sequences_apart
    packed = settings(
        folders["qwen3_moe"], rows_file, tmp_path / "packed", rows={"packing": True}, batch_size=2
    )
    result = run(packed, progress=False)
    assert result.eval_loss_after is not None
    assert result.eval_loss_before is not None
    assert result.eval_loss_after < result.eval_loss_before - 0.3


def test_lora_and_qlora_start_from_the_same_adapters(
    folders: dict[str, Path], rows_file: Path, tmp_path: Path
) -> None:
    """The experts of a 16-bit model are no modules, those of a 4-bit model are."""
    states = []
    for method in ("lora", "qlora"):
        chosen = settings(
            folders["qwen3_moe"],
            rows_file,
            tmp_path / method,
            method=method,
            steps=1,
            learning_rate=1e-12,
            eval_steps=None,
        )
        run(chosen, progress=False)
        model, _ = load_model(folders["qwen3_moe"], quantize=None)
        load_adapter(model, tmp_path / method)
        states.append({n: p for n, p in model.named_parameters() if "lora_A" in n})
    assert states[0].keys() == states[1].keys()
    for name, parameter in states[0].items():
        torch.testing.assert_close(parameter, states[1][name], rtol=0, atol=1e-9)
