"""What is written keeps the base's own files, so that an earlier transformers reads it alike.

transformers 4.57 read every folder below with the logits of the installed one (a run by hand: it
cannot stand in one process with the other).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from graftlm.adapters import add_lora
from graftlm.adapters.peft_format import save_adapter
from graftlm.config import LoRAConfig, RunConfig, validate
from graftlm.exporting.merge import merge_to_folder
from graftlm.models import load_model, load_tokenizer, quantize_folder, save_model
from graftlm.models.load import tokenizer_in
from graftlm.models.save import save_tokenizer
from graftlm.training import run
from tests.oracles.byte_tokenizer import byte_tokenizer
from tests.oracles.model_families import FAMILIES, tiny_model

ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
EDITED = {"tokenizer_config.json"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A Llama in the words of transformers 4: `rope_theta`, `torch_dtype`, a tokenizer's class."""
    folder = tmp_path_factory.mktemp("base") / "of-transformers-4"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"], config["dtype"]
    config |= {"rope_theta": 500000.0, "rope_scaling": ROPE, "torch_dtype": "float32"}
    config |= {"transformers_version": "4.57.6"}
    (folder / "config.json").write_text(json.dumps(config))
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 256} | special
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "none"}')
    (folder / "LICENSE").write_text("do as you like")
    return folder


def trained(base: Path, rows: Path, out: Path, method: str) -> Path:
    tree = {
        "method": method,
        "out": str(out),
        "model": {"name": str(base)},
        "data": {"train": str(rows), "max_length": 64},
        "lora": {"rank": 2} if method == "lora" else {},
        "train": {"steps": 1, "batch_size": 2},
    }
    result = run(validate(RunConfig, tree), progress=False)
    assert result.adapter is not None
    return Path(result.adapter)


def changed(base: Path, folder: Path) -> set[str]:
    return {
        file.name
        for file in base.iterdir()
        if not (folder / file.name).is_file()
        or file.read_bytes() != (folder / file.name).read_bytes()
    }


def require_only_the_template_changed(base: Path, folder: Path) -> None:
    before = json.loads((base / "tokenizer_config.json").read_text())
    after = json.loads((folder / "tokenizer_config.json").read_text())
    assert after.pop("chat_template")
    assert after == before


def test_a_full_tune_changes_weights_and_template_only(
    base: Path, rows_file: Path, tmp_path: Path
) -> None:
    folder = trained(base, rows_file, tmp_path / "run", "full")
    assert changed(base, folder) == EDITED | {"model.safetensors"}
    require_only_the_template_changed(base, folder)


def test_an_adapter_and_its_merge_change_the_template_only(
    base: Path, rows_file: Path, tmp_path: Path
) -> None:
    folder = trained(base, rows_file, tmp_path / "run", "lora")
    own = {"tokenizer.json", "special_tokens_map.json", "tokenizer_config.json"}
    assert changed(base, folder) & own == EDITED
    require_only_the_template_changed(base, folder)
    merge_to_folder(tmp_path / "run", tmp_path / "merged")
    assert changed(base, tmp_path / "merged") == EDITED | {"model.safetensors"}
    require_only_the_template_changed(base, tmp_path / "merged")
    merge_to_folder(tmp_path / "run", tmp_path / "half", dtype=torch.bfloat16)
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    said = json.loads((base / "config.json").read_text())
    assert config == said | {"torch_dtype": "bfloat16"}


def test_a_quantised_folder_keeps_all_but_its_weights(base: Path, tmp_path: Path) -> None:
    quantize_folder(base, tmp_path / "q")
    assert changed(base, tmp_path / "q") == {"model.safetensors", "config.json"}
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    del config["quantization_config"]
    assert config == json.loads((base / "config.json").read_text())


def test_what_was_changed_in_hand_is_changed_in_the_files(base: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(base, quantize=None)
    model.config.max_position_embeddings = 128
    model.config.eos_token_id = 256
    tokenizer.pad_token, tokenizer.padding_side = "</s>", "left"
    save_model(model, tokenizer, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    said = json.loads((base / "config.json").read_text())
    assert config == said | {"max_position_embeddings": 128, "eos_token_id": 256}
    names = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    before = json.loads((base / "tokenizer_config.json").read_text())
    assert names == before | {"pad_token": "</s>", "padding_side": "left"}
    again = load_tokenizer(tmp_path / "m")
    assert (again.pad_token, again.padding_side) == ("</s>", "left")


@pytest.mark.parametrize("reader", [load_tokenizer, AutoTokenizer.from_pretrained])
def test_a_tokenizer_with_more_tokens_is_saved_whole(
    reader: Any, base: Path, tmp_path: Path
) -> None:
    tokenizer = reader(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    save_tokenizer(tokenizer, tmp_path)
    names = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert names["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4 knows this one
    assert names["additional_special_tokens"] == ["<|im_end|>"]
    assert "extra_special_tokens" not in names
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("a<|im_end|>b").input_ids == tokenizer("a<|im_end|>b").input_ids


def test_other_rules_than_the_bases_are_saved(base: Path, tmp_path: Path) -> None:
    from tokenizers import normalizers

    tokenizer: Any = load_tokenizer(base)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    save_tokenizer(tokenizer, tmp_path)
    assert tokenizer_in(tmp_path)("ABC").input_ids == tokenizer("abc").input_ids


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_no_folder_has_the_earlier_names_too(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    save_model(model, byte_tokenizer(), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    parameters = config.get("rope_parameters")
    if parameters is not None:
        whole = parameters.get("full_attention", parameters)
        assert config["rope_theta"] == whole["rope_theta"]
    again = AutoConfig.from_pretrained(tmp_path / "m").to_dict()
    known = model.config.to_dict()
    assert {k: v for k, v in again.items() if known.get(k) != v}.keys() <= {
        "_name_or_path",
        "transformers_version",
    }


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_base_of_transformers_5_is_merged_with_both_names(
    tiny_llama: Path, tmp_path: Path
) -> None:
    model, tokenizer = load_model(tiny_llama, quantize=None)
    add_lora(model, LoRAConfig(rank=2))
    save_adapter(model, tmp_path / "a", tokenizer=tokenizer, base_name=str(tiny_llama))
    merge_to_folder(tmp_path / "a", tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    for folder in (tmp_path / "a", tmp_path / "merged"):
        assert "TokenizersBackend" not in (folder / "tokenizer_config.json").read_text()
        assert AutoTokenizer.from_pretrained(folder)("phở").input_ids == tokenizer("phở").input_ids
    ids = torch.arange(1, 9).view(1, 8)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, model(ids).logits)
