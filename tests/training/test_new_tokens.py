"""A run with new tokens, whole modules and biases: planned, trained, resumed, merged, exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import graftlm
from graftlm.adapters import add_lora
from graftlm.adapters.open_model import open_model
from graftlm.adapters.peft_format import load_adapter
from graftlm.config import recorded_config
from graftlm.data.new_tokens import add_tokens
from graftlm.errors import ArtifactError, ConfigError
from graftlm.exporting.measured_merge import measured_merge
from graftlm.exporting.merge import merge_to_folder
from graftlm.models import load_model
from graftlm.planning.trace import BatchShape, trace_step
from graftlm.training.hooks import Hook
from graftlm.training.new_tokens import planned_tokens
from graftlm.training.train import run
from tests.oracles.model_families import tiny_model

NEW = ("<call>", "</call>", "<a>", "</a>")
ROWS = (258, 259, 260, 261)
"""The tokenizer has 258 tokens, the tables have 260 rows."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    for family in ("llama", "gemma3", "qwen2"):
        tiny_model(family).save_pretrained(root / family, max_shard_size="100KB")
        tiny_tokenizer.save_pretrained(root / family)
    return {folder.name: folder for folder in root.iterdir()}


def test_a_token_without_characters_is_refused(tiny_tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"data\.new_tokens holds a token without characters"):
        add_tokens(tiny_tokenizer, ["<a>", ""])


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """Rows with the new tokens in prompt and answer."""
    rows = [
        {"prompt": f"do {i} <call>", "completion": f"f({i})</call>" if i % 2 else f"g({i})"}
        for i in range(24)
    ]
    path = tmp_path / "calls.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def request(base: Path, rows: Path, out: Path, *, method: str = "qlora", **lora: Any) -> Any:
    return graftlm.RunConfig(
        out=str(out),
        method=method,
        device="cpu",
        model=graftlm.ModelConfig(name=str(base), embeddings="keep"),
        data=graftlm.DataConfig(train=str(rows), max_length=64, new_tokens=NEW),
        lora=graftlm.LoRAConfig(rank=4, alpha=8, targets=("q_proj", "down_proj"), **lora),
        train=graftlm.TrainConfig(steps=6, batch_size=4, learning_rate=3e-2, save_steps=3),
    )


class StopAfter(Hook):
    def __init__(self, step: int) -> None:
        self.step = step

    def step_ends(self, active: Any) -> None:
        if active.state.step == self.step:
            active.pause()


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=ids).logits
    return result


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_new_tokens_train_resume_and_merge(
    family: str, bases: dict[str, Path], calls: Path, tmp_path: Path
) -> None:
    config = request(bases[family], calls, tmp_path / "whole")
    result = graftlm.run(config, progress=False)
    broken = config.model_copy(update={"out": str(tmp_path / "broken")})
    run(broken, progress=False, hooks=[StopAfter(3)])
    graftlm.run(broken, progress=False, resume=True)
    one, other = (
        (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes()
        for name in ("whole", "broken")
    )
    assert one == other
    recorded = recorded_config(tmp_path / "whole" / "config.yaml")
    assert recorded.lora.trainable_token_indices == ROWS
    rows = {
        k: t
        for k, t in load_file(tmp_path / "whole/adapter/adapter_model.safetensors").items()
        if "token_adapter" in k
    }
    assert len(rows) == (1 if family == "gemma3" else 2)
    assert all(tuple(t.shape) == (4, 64) for t in rows.values())
    assert all((t[0] - t[1]).abs().max() > 1e-3 for t in rows.values())

    adapter = tmp_path / "whole"
    model, tokenizer = open_model(str(bases[family]), str(adapter), None, "cpu")
    ids = torch.tensor([tokenizer("do 5 <call>f(5)</call>").input_ids])
    assert {258, 259} <= set(ids[0].tolist())
    expected = logits(model, ids)
    merge_to_folder(adapter, tmp_path / "merged")
    report = measured_merge(adapter, tmp_path / "measured", least_kept=0.0)
    assert report["proof"]["problems"] == []
    assert report["chosen"] == "16bit-dequantized"
    assert report["kept"] > 0.99
    for out in ("merged", "measured"):
        again = AutoModelForCausalLM.from_pretrained(tmp_path / out).eval()
        assert again.config.vocab_size == 262
        assert again.config.tie_word_embeddings is (family == "gemma3")
        torch.testing.assert_close(logits(again, ids), expected, rtol=0, atol=1e-4)
        text = AutoTokenizer.from_pretrained(tmp_path / out)
        assert text("do 5 <call>f(5)</call>").input_ids == ids[0].tolist()
    assert result.trainable_parameters == sum(
        t.numel() for t in load_file(adapter / "adapter" / "adapter_model.safetensors").values()
    )


PARTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"modules_to_save": ("lm_head", "norm")}),
    ("gemma3", {"modules_to_save": ("embed_tokens",)}),
    ("qwen2", {"bias": "all"}),
    ("qwen2", {"bias": "lora_only"}),
]


@pytest.mark.parametrize(("family", "lora"), PARTS, ids=str)
def test_other_parts_train_resume_and_merge(
    family: str, lora: dict[str, Any], bases: dict[str, Path], calls: Path, tmp_path: Path
) -> None:
    config = request(bases[family], calls, tmp_path / "whole", **lora)
    whole = config.model_copy(update={"data": config.data.model_copy(update={"new_tokens": ()})})
    graftlm.run(whole, progress=False)
    broken = whole.model_copy(update={"out": str(tmp_path / "broken")})
    run(broken, progress=False, hooks=[StopAfter(3)])
    graftlm.run(broken, progress=False, resume=True)
    one, other = (
        (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes()
        for name in ("whole", "broken")
    )
    assert one == other
    ids = torch.arange(1, 25).view(2, 12)
    model, _ = open_model(str(bases[family]), str(tmp_path / "whole"), None, "cpu")
    expected = logits(model, ids)
    merge_to_folder(tmp_path / "whole", tmp_path / "merged")
    report = measured_merge(tmp_path / "whole", tmp_path / "measured", least_kept=0.0)
    assert report["proof"]["problems"] == []
    for out in ("merged", "measured"):
        again = AutoModelForCausalLM.from_pretrained(tmp_path / out).eval()
        torch.testing.assert_close(logits(again, ids), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "lora",
    [
        {"modules_to_save": ("lm_head", "norm")},
        {"trainable_token_indices": (3, 262)},
        {"bias": "all"},
    ],
    ids=str,
)
def test_a_plan_counts_what_trains(lora: dict[str, Any]) -> None:
    model = tiny_model("qwen2")
    settings = graftlm.LoRAConfig(rank=4, targets=("q_proj",), **lora)
    config = graftlm.RunConfig(
        method="lora", lora=settings, model=graftlm.ModelConfig(embeddings="keep")
    )
    trace = trace_step(model.config, config, BatchShape(1, 16), torch.float32)
    add_lora(model, settings)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trace.trainable_parameters == trained
    # Weights, gradients and moments of what trains are all there between two steps.
    assert trace.peak.components["optimizer"] >= 8 * trained


def test_a_plan_has_room_for_new_tokens() -> None:
    model = tiny_model("llama")
    config = graftlm.RunConfig(data=graftlm.DataConfig(new_tokens=NEW))
    assert planned_tokens(config, model).trainable_token_indices == (260, 261, 262, 263)


def test_full_training_has_the_new_tokens_too(
    bases: dict[str, Path], calls: Path, tmp_path: Path
) -> None:
    config = request(bases["llama"], calls, tmp_path / "run", method="full")
    graftlm.run(config, progress=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert model.config.vocab_size == 262
    ids = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")("<call>").input_ids
    assert ids[-1] == 258


def test_an_adapter_that_trains_no_rows_adds_no_tokens(
    bases: dict[str, Path], calls: Path, tmp_path: Path
) -> None:
    graftlm.run(request(bases["llama"], calls, tmp_path / "run"), progress=False)
    folder = tmp_path / "adapter"
    shutil.copytree(tmp_path / "run" / "adapter", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    del config["trainable_token_indices"]
    tensors = load_file(folder / "adapter_model.safetensors")
    lora = {key: tensor for key, tensor in tensors.items() if "lora" in key}
    save_file(lora, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="only an adapter that trains the rows of new tokens"):
        merge_to_folder(folder, tmp_path / "out", base=str(bases["llama"]))


def test_new_tokens_of_a_model_in_hand_are_its_owners(
    bases: dict[str, Path], calls: Path, tmp_path: Path
) -> None:
    model, tokenizer = load_model(bases["llama"], quantize=None)
    add_lora(model, graftlm.LoRAConfig(rank=4))
    with pytest.raises(ConfigError, match=r"of a model in hand, call tokenizer\.add_tokens"):
        graftlm.train(
            model,
            tokenizer,
            calls,
            out=tmp_path / "run",
            data_config=graftlm.DataConfig(new_tokens=NEW),
        )


def test_an_adapter_with_new_tokens_loads_beside_another(
    bases: dict[str, Path], calls: Path, tmp_path: Path
) -> None:
    graftlm.run(request(bases["llama"], calls, tmp_path / "run"), progress=False)
    model, _ = load_model(bases["llama"], quantize="nf4")
    add_lora(model, graftlm.LoRAConfig(rank=4), name="other")
    ids = torch.arange(1, 25).view(2, 12)
    before = logits(model, ids)
    load_adapter(model, tmp_path / "run", name="calls")
    torch.testing.assert_close(logits(model, ids)[..., :260], before, rtol=0, atol=1e-5)
    graftlm.adapters.activate(model, "calls")
    expected, _ = open_model(str(bases["llama"]), str(tmp_path / "run"), None, "cpu")
    torch.testing.assert_close(logits(model, ids), logits(expected, ids), rtol=0, atol=1e-5)
