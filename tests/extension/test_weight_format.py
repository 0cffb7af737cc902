"""A weight format from outside goes everywhere that a format of the package goes."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import graftlm
from graftlm.errors import ConfigError, ModelError
from graftlm.extend import FrozenWeight, format_named
from graftlm.planning import make_plan

STEPS = 6
HERE = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def affine4() -> Any:
    """The module of an outside user, imported as a script imports its neighbour."""
    spec = importlib.util.spec_from_file_location("affine4", HERE / "affine4.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings(model: Path, data: Path, out: Path, **held: Any) -> graftlm.RunConfig:
    return graftlm.RunConfig(
        method="qlora",
        out=str(out),
        model=graftlm.ModelConfig(
            name=str(model), weight_format="affine4", block_size=32, embeddings="keep", **held
        ),
        data=graftlm.DataConfig(train=str(data), eval=str(data), max_length=64),
        lora=graftlm.LoRAConfig(rank=4),
        train=graftlm.TrainConfig(steps=STEPS, batch_size=4, learning_rate=5e-3),
    )


def body_of(model: Any) -> list[torch.nn.Linear]:
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    ]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(1, 25).view(2, 12)).logits


def test_the_format_takes_at_most_sixty_lines_and_public_names() -> None:
    text = (HERE / "affine4.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert [line for line in text.splitlines() if "graftlm" in line and "import" in line] == [
        "from graftlm.extend import FrozenWeight, register_format"
    ]


def test_a_loaded_model_is_that_of_the_rounded_weights(tiny_llama: Path, affine4: Any) -> None:
    arrived = []
    quantize = affine4.Affine4.quantize.__func__

    def watched(cls: Any, weight: torch.Tensor, settings: Any) -> FrozenWeight:
        arrived.append(tuple(weight.shape))
        return quantize(cls, weight, settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(affine4.Affine4, "quantize", classmethod(watched))
        model, _ = graftlm.load_model(tiny_llama, quantize="affine4", block_size=32)
    rounded, _ = graftlm.load_model(tiny_llama, quantize=None)
    how = graftlm.ModelConfig(block_size=32)
    layers = body_of(rounded)
    assert sorted(arrived) == sorted(tuple(layer.weight.shape) for layer in layers)
    for layer in layers:
        layer.weight.data = affine4.Affine4.quantize(layer.weight.data, how).dequantize()
    torch.testing.assert_close(logits(model), logits(rounded))
    assert not body_of(model)


def test_it_plans_trains_resumes_and_merges(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, affine4: Any, monkeypatch: Any
) -> None:
    config = settings(tiny_llama, rows_file, tmp_path / "whole")
    plan = make_plan(config, memory="8GB", methods=["qlora"])
    option = plan.recommendation.option
    assert option.fits
    assert option.seconds_per_step
    assert "model.weight_format=affine4 --set model.block_size=32" in plan.command

    # The bytes that the plan gives the model are those that the model holds.
    model, _ = graftlm.load_model(tiny_llama, quantize="affine4", block_size=32)
    low_and_step = sum(b.nbytes for n, b in model.named_buffers() if n.endswith((".low", ".step")))
    codes = sum(b.nbytes for n, b in model.named_buffers() if n.endswith(".codes"))
    assert low_and_step > 0
    assert option.components["quantization_state"] == low_and_step
    planned = option.components["weights"]
    plain = sum(p.nbytes for p in model.parameters())
    buffers = sum(b.nbytes for b in model.buffers()) - low_and_step - codes
    assert planned == pytest.approx(plain + codes + buffers, abs=1024)

    whole = graftlm.run(config, progress=False)
    assert whole.finished
    assert whole.eval_loss_after < whole.eval_loss_before
    parameters = sum(
        p.numel() for p in graftlm.load_model(tiny_llama, quantize=None)[0].parameters()
    )
    assert whole.total_parameters == parameters + whole.trainable_parameters

    # Stopped by Ctrl-C while one of its products is computed, and resumed.
    parts = settings(tiny_llama, rows_file, tmp_path / "parts")
    product, calls = affine4.Affine4.product_with_update, 0

    def interrupting(self: Any, *arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        if calls == 3 * 14:  # two layers of seven: in the third step
            os.kill(os.getpid(), signal.SIGINT)
        return product(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(affine4.Affine4, "product_with_update", interrupting)
        stopped = graftlm.run(parts, progress=False)
    assert 0 < stopped.steps < STEPS
    assert graftlm.run(parts, resume=True, progress=False).finished
    results = [tmp_path / run / "adapter/adapter_model.safetensors" for run in ("whole", "parts")]
    assert results[0].read_bytes() == results[1].read_bytes()

    # Merged on disk, the model is the one that was trained; so it is when merged in memory.
    graftlm.load_adapter(model, tmp_path / "whole")
    trained = logits(model)
    report = graftlm.merge_to_folder(tmp_path / "whole", tmp_path / "merged")
    assert report["onto"] == "affine4"
    merged, tokenizer = graftlm.load_model(tmp_path / "merged", quantize=None)
    torch.testing.assert_close(logits(merged), trained, rtol=0, atol=5e-5)
    torch.testing.assert_close(logits(graftlm.merge_in_place(model)), trained, rtol=0, atol=5e-5)
    graftlm.save_model(model, tokenizer, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["model_type"] == "llama"


def test_a_model_in_hand_trains_and_its_record_names_the_format(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    model, tokenizer = graftlm.load_model(tiny_llama, quantize="affine4")
    graftlm.add_lora(model, graftlm.LoRAConfig(rank=4))
    how = graftlm.TrainConfig(steps=2)
    graftlm.train(model, tokenizer, rows_file, how, out=tmp_path / "run", progress=False)
    assert "weight_format: affine4" in (tmp_path / "run/config.yaml").read_text()


def test_with_adapters_it_is_not_saved_as_a_plain_model(tiny_llama: Path, tmp_path: Path) -> None:
    model, tokenizer = graftlm.load_model(tiny_llama, quantize="affine4")
    with pytest.raises(ModelError, match="FrozenLinear"):
        graftlm.save_model(model, tokenizer, tmp_path / "m")


def test_an_unknown_format_is_refused_with_the_ones_there_are(
    tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    for name in ("afine4", "gptq"):
        with pytest.raises(ConfigError, match=r"expected one of affine4, int8, nf4"):
            format_named(name)
    with pytest.raises(ConfigError, match="did you mean 'affine4'"):
        graftlm.load_model(tiny_llama, quantize="afine4")
    config = settings(tiny_llama, rows_file, tmp_path / "run")
    held = config.model.model_copy(update={"weight_format": "afine4"})
    with pytest.raises(ConfigError, match="did you mean 'affine4'"):
        graftlm.run(config.model_copy(update={"model": held}), progress=False)
    assert not (tmp_path / "run").exists()
