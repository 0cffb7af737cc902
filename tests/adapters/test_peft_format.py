from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from graftlm.adapters import add_lora, lora_modules, lora_parameters, merge_adapters
from graftlm.adapters.peft_format import load_adapter, save_adapter
from graftlm.config import LoRAConfig
from graftlm.errors import ArtifactError, ResourceError
from tests.oracles.model_families import FAMILIES, tiny_model

# PEFT 0.21 asks transformers 5.23 through a property that is on its way out, and talks about
# adapters on tied embeddings and on GPT-2's transposed layers.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*save_embedding_layers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no longer tied:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*rank_pattern keys did not match:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*Could not find a config file:UserWarning"),
]

IDS = torch.arange(1, 25).view(2, 12)
ENDINGS = {
    "phi3": ["qkv_proj", "down_proj"],
    "gpt2": ["c_attn", "mlp.c_proj"],
    "opt": ["q_proj", "fc1"],
    "falcon": ["query_key_value", "dense_4h_to_h"],
    "mixtral": ["q_proj", "o_proj"],
}


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=IDS).logits
    return result


def ours(family: str, **settings: Any) -> nn.Module:
    model = tiny_model(family)
    add_lora(model, LoRAConfig(**({"rank": 4, "alpha": 8} | settings)))
    with torch.no_grad():
        for _, parameter in lora_parameters(model):
            parameter.normal_(std=0.2)
    return model


def theirs(family: str, **settings: Any) -> peft.PeftModel:
    config = peft.LoraConfig(**({"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM"} | settings))
    model = peft.get_peft_model(tiny_model(family), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    return model.eval()


def saved_by_peft(folder: Path, family: str = "llama", **settings: Any) -> peft.PeftModel:
    model = theirs(family, **({"target_modules": ["q_proj", "down_proj"]} | settings))
    model.save_pretrained(folder)
    return model


def rewrite(folder: Path, change: dict[str, Any]) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


# ----- there and back, against PEFT itself


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True, "rank_pattern": {"0.*": 3}, "alpha_pattern": {"1.*": 5.0}}],
    ids=["plain", "patterns"],
)
def test_our_adapter_gives_the_same_logits_in_peft(
    family: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = ours(family, **settings)
    save_adapter(model, tmp_path, base_name="base")
    loaded = peft.PeftModel.from_pretrained(tiny_model(family), tmp_path).eval()
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)
    assert not torch.equal(logits(model), logits(tiny_model(family)))


@pytest.mark.parametrize("family", list(FAMILIES))
def test_an_adapter_of_peft_gives_the_same_logits_here(family: str, tmp_path: Path) -> None:
    endings = ENDINGS.get(family, ["q_proj", "down_proj"])
    model = saved_by_peft(
        tmp_path,
        family,
        target_modules=endings,
        rank_pattern={endings[0]: 3},
        alpha_pattern={f"1.*{endings[1]}": 5},
        use_rslora=True,
    )
    here = tiny_model(family)
    report = load_adapter(here, tmp_path)
    torch.testing.assert_close(logits(here), logits(model), rtol=1e-5, atol=1e-5)
    assert set(report.adapted.values()) == {3, 4}
    merge_adapters(here)
    assert torch.equal(logits(here), logits(model.merge_and_unload()))


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": r".*layers\.1.*(q|v)_proj"},
        {"target_modules": "all-linear"},
        {"target_modules": "all-linear", "exclude_modules": ["k_proj"]},
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*\.0\..*"},
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
        {"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
        {"target_modules": ["q_proj"], "layers_to_transform": []},
        {
            "target_modules": ["q_proj", "model.layers.0.self_attn.k_proj"],
            "layers_to_transform": [1],
        },
        {"target_modules": ["q_proj", "query_key_value", "c_attn"]},
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
        {"target_modules": ["q_proj"], "r": 40},
        {"target_modules": ["q_proj"], "rank_pattern": {"nothing": 3}},
    ],
    ids=str,
)
def test_every_way_of_naming_targets_loads(settings: dict[str, Any], tmp_path: Path) -> None:
    model = saved_by_peft(tmp_path, **settings)
    here = tiny_model("llama")
    load_adapter(here, tmp_path)
    torch.testing.assert_close(logits(here), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gemma3"])
def test_embeddings_travel_both_ways(family: str, tmp_path: Path) -> None:
    model = ours(family, targets=("embed_tokens", "q_proj"))
    save_adapter(model, tmp_path / "ours")
    loaded = peft.PeftModel.from_pretrained(tiny_model(family), tmp_path / "ours").eval()
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)
    # PEFT stores a copy of the untrained table beside the adapter; it must match, and is let be.
    back = saved_by_peft(tmp_path / "peft", family, target_modules=["embed_tokens", "q_proj"])
    here = tiny_model(family)
    load_adapter(here, tmp_path / "peft")
    torch.testing.assert_close(logits(here), logits(back), rtol=1e-5, atol=1e-5)


def test_merging_a_tied_embedding_keeps_the_logits_where_peft_does_not(tmp_path: Path) -> None:
    back = saved_by_peft(tmp_path, "llama-tied", target_modules=["embed_tokens"])
    here = tiny_model("llama-tied")
    load_adapter(here, tmp_path)
    expected = logits(here)
    merge_adapters(here)
    torch.testing.assert_close(logits(here), expected, rtol=0, atol=1e-5)
    assert (logits(back.merge_and_unload()) - expected).abs().max() > 0.1


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_choice_of_modules_ranks_and_alphas_travels_to_peft(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    names = list(lora_modules(ours("llama")))
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    ranks = data.draw(st.fixed_dictionaries({name: st.integers(1, 4) for name in chosen}))
    alphas = data.draw(st.fixed_dictionaries({name: st.integers(1, 9) for name in chosen}))
    model = ours("llama", targets=tuple(chosen), rank_pattern=ranks, alpha_pattern=alphas)
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(model, folder)
    loaded = peft.PeftModel.from_pretrained(tiny_model("llama"), folder).eval()
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)
    here = tiny_model("llama")
    load_adapter(here, folder)
    torch.testing.assert_close(logits(here), logits(model), rtol=1e-5, atol=1e-5)


# ----- what is written


def test_the_files_hold_the_adapter_and_nothing_else(tmp_path: Path) -> None:
    model = ours("llama", targets=("q_proj", "embed_tokens"))
    save_adapter(model, tmp_path / "a", base_name="some/base")
    assert {p.name for p in (tmp_path / "a").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    prefix = "base_model.model.model."
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == {
        f"{prefix}embed_tokens.lora_embedding_A": (4, 260),
        f"{prefix}embed_tokens.lora_embedding_B": (64, 4),
        **{f"{prefix}layers.{i}.self_attn.q_proj.lora_A.weight": (4, 64) for i in (0, 1)},
        **{f"{prefix}layers.{i}.self_attn.q_proj.lora_B.weight": (64, 4) for i in (0, 1)},
    }
    with safe_open(tmp_path / "a" / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    text = (tmp_path / "a" / "adapter_config.json").read_text()
    config = json.loads(text)
    assert text == json.dumps(config, indent=2, sort_keys=True) + "\n"
    assert config == {
        "alpha_pattern": {},
        "base_model_name_or_path": "some/base",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": 4,
        "rank_pattern": {},
        "target_modules": ["embed_tokens", "q_proj"],
        "task_type": "CAUSAL_LM",
    }


def test_saving_twice_gives_the_same_bytes_and_leaves_other_files_alone(tmp_path: Path) -> None:
    model = ours("llama")
    save_adapter(model, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    (tmp_path / "notes.txt").write_text("mine")
    save_adapter(model, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before | {"notes.txt": b"mine"}


def test_a_model_without_adapters_cannot_be_saved_as_one(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no adapters to save"):
        save_adapter(tiny_model("llama"), tmp_path)


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot write"):
        save_adapter(ours("llama"), tmp_path / "file" / "adapter")


# ----- reading


def test_loading_over_equal_adapters_keeps_the_parameters_an_optimiser_holds(
    tmp_path: Path,
) -> None:
    save_adapter(ours("llama"), tmp_path)
    model = tiny_model("llama")
    add_lora(model, LoRAConfig(rank=4, alpha=8))
    before = [id(parameter) for _, parameter in lora_parameters(model)]
    load_adapter(model, tmp_path)
    assert [id(parameter) for _, parameter in lora_parameters(model)] == before
    assert torch.equal(logits(model), logits(ours("llama")))


def test_loading_over_other_adapters_replaces_them(tmp_path: Path) -> None:
    save_adapter(ours("llama", targets=("q_proj",)), tmp_path)
    model = ours("llama", rank=2)
    load_adapter(model, tmp_path)
    assert torch.equal(logits(model), logits(ours("llama", targets=("q_proj",))))


def test_a_loaded_adapter_trains_and_its_base_does_not(tmp_path: Path) -> None:
    save_adapter(ours("llama"), tmp_path)
    model = tiny_model("llama")
    load_adapter(model, tmp_path)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (".lora_" in name)


def test_a_run_folder_holds_its_adapter(tmp_path: Path) -> None:
    save_adapter(ours("llama"), tmp_path / "run" / "adapter")
    model = tiny_model("llama")
    load_adapter(model, tmp_path / "run")
    assert torch.equal(logits(model), logits(ours("llama")))


def test_16_bit_adapters_are_widened(tmp_path: Path) -> None:
    saved_by_peft(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({key: tensor.bfloat16() for key, tensor in load_file(path).items()}, path)
    model = tiny_model("llama")
    load_adapter(model, tmp_path)
    assert {parameter.dtype for _, parameter in lora_parameters(model)} == {torch.float32}


@pytest.mark.parametrize("style", ["{}", "base_model.model.{}", "base_model.model._orig_mod.{}"])
@pytest.mark.parametrize("name", ["", "default."])
def test_older_key_styles_load(style: str, name: str, tmp_path: Path) -> None:
    model = saved_by_peft(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    renamed = {
        style.format(key.removeprefix("base_model.model.").replace("weight", f"{name}weight")): t
        for key, t in load_file(path).items()
    }
    save_file(renamed, path)
    here = tiny_model("llama")
    load_adapter(here, tmp_path)
    torch.testing.assert_close(logits(here), logits(model), rtol=1e-5, atol=1e-5)


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{Q}.lora_B.weight"), rf"missing: {Q}\.lora_B\.weight"),
        (
            lambda t: (t.pop(f"{Q}.lora_A.weight"), t.pop(f"{Q}.lora_B.weight")),
            rf"missing: {Q}\.lora_A\.weight and {Q}\.lora_B\.weight \(its adapter_config",
        ),
        (
            lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(3, 64)}),
            r"lora_A\.weight has shape \[3, 64\], expected \[4, 64\] \(rank 4\)",
        ),
        (lambda t: t.update({f"{Q}.other": torch.zeros(1)}), rf"unexpected: {Q}\.other"),
        (
            lambda t: t.update({f"{Q}.lora_embedding_A": torch.zeros(4, 64)}),
            rf"unexpected: {Q}\.lora_embedding_A",
        ),
        (
            lambda t: t.update({f"{Q}x.lora_A.weight": torch.zeros(4, 64)}),
            r"q_projx, which is no such layer here; did you mean 'model\.layers\.0\.self_attn\.q_",
        ),
        (
            lambda t: t.update(
                {
                    Q.replace("q_proj", "k_proj.lora_A.weight"): torch.zeros(4, 64),
                    Q.replace("q_proj", "k_proj.lora_B.weight"): torch.zeros(32, 4),
                }
            ),
            "k_proj, which its config does not target",
        ),
        (
            lambda t: t.update({f"{Q}.lora_A.second.weight": torch.zeros(4, 64)}),
            r"unexpected: .*q_proj\.lora_A",  # two adapters in one file
        ),
        (
            lambda t: t.update(
                {"base_model.model.model.embed_tokens.weight": torch.zeros(261, 64)}
            ),
            r"embed_tokens\.weight \[260, 64\] differs from the model's own weight \[261, 64\]",
        ),
        (lambda t: t.clear(), "it holds no LoRA tensors"),
    ],
)
def test_tensors_that_do_not_fit_are_named_and_nothing_changes(
    change: Any, message: str, tmp_path: Path
) -> None:
    saved_by_peft(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    model = tiny_model("llama")
    with pytest.raises(ArtifactError, match=message):
        load_adapter(model, tmp_path)
    assert not lora_modules(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    save_adapter(ours("gpt2"), tmp_path)
    with pytest.raises(ArtifactError, match=r"does not fit the model[\s\S]*no such layer here"):
        load_adapter(tiny_model("llama"), tmp_path)


@pytest.mark.parametrize("cut", [0, 7, 8, 100, -1])
def test_a_cut_off_file_is_corrupt(cut: int, tmp_path: Path) -> None:
    save_adapter(ours("llama"), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    os.truncate(path, cut % path.stat().st_size)
    with pytest.raises(ArtifactError, match="not a valid safetensors file"):
        load_adapter(tiny_model("llama"), tmp_path)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    save_adapter(ours("llama"), tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ArtifactError, match="pickle"):
        load_adapter(tiny_model("llama"), tmp_path)
    (tmp_path / "adapter_model.bin").unlink()
    with pytest.raises(ArtifactError, match=r"adapter_model\.safetensors is missing"):
        load_adapter(tiny_model("llama"), tmp_path)
