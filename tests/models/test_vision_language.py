"""The text side of models of images and text: trained on text, saved for the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import graftlm
from graftlm.adapters import lora_modules
from graftlm.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore")  # each model's own, of transformers and PEFT
IDS = torch.arange(1, 25).view(2, 12)
TEXT: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 0,
}
EYES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
ROTARY = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 4]}
QWEN_EYES = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 64,
}
LAYERS = ["sliding_attention", "full_attention"]
ADAPTED = {"Gemma4": 19}
"""Two layers of seven; Gemma 4 has three more that bring in its rows by layer."""
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Gemma3": (
        "ForConditionalGeneration",
        {
            "text_config": TEXT | {"query_pre_attn_scalar": 16, "sliding_window": 8},
            "vision_config": EYES | {"model_type": "siglip_vision_model"},
            "mm_tokens_per_image": 4,
            "image_token_index": 258,
        },
    ),
    "Qwen2_5_VL": (
        "ForConditionalGeneration",
        {
            "text_config": TEXT | {"rope_parameters": ROTARY},
            "vision_config": QWEN_EYES | {"fullatt_block_indexes": [0]},
            "image_token_id": 258,
            "video_token_id": 259,
        },
    ),
    "Qwen3VL": (
        "ForConditionalGeneration",
        {
            "text_config": TEXT | {"rope_parameters": ROTARY},
            "vision_config": QWEN_EYES | {"deepstack_visual_indexes": [0]},
            "image_token_id": 258,
            "video_token_id": 259,
        },
    ),
    "Mistral3": (
        "ForConditionalGeneration",
        {
            "text_config": TEXT | {"model_type": "mistral"},
            "vision_config": EYES | {"model_type": "pixtral", "head_dim": 16},
            "image_token_index": 258,
        },
    ),
    "Gemma4": (
        "ForConditionalGeneration",
        {
            "text_config": TEXT
            | {"sliding_window": 8, "vocab_size_per_layer_input": 260}
            | {"hidden_size_per_layer_input": 16, "layer_types": LAYERS},
            "vision_config": EYES | {"num_key_value_heads": 2, "head_dim": 16},
            "audio_config": None,
            "image_token_id": 258,
            "video_token_id": 259,
            "audio_token_id": 257,
        },
    ),
    "Llama4": (
        "ForConditionalGeneration",
        {
            "text_config": TEXT
            | {"intermediate_size_mlp": 128, "num_local_experts": 4, "moe_layers": [1]},
            "vision_config": EYES
            | {"vision_output_dim": 64, "projector_input_dim": 32, "projector_output_dim": 32}
            | {"intermediate_size": 128},
            "image_token_index": 258,
        },
    ),
    "SmolVLM": (
        "ForConditionalGeneration",
        {
            "text_config": TEXT | {"model_type": "llama"},
            "vision_config": EYES,
            "scale_factor": 1,
            "image_token_id": 258,
        },
    ),
}


@pytest.mark.parametrize("family", MODELS)
def test_it_trains_on_text_and_its_adapter_fits_the_whole_model_in_peft(
    family: str, rows_file: Path, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    ending, settings = MODELS[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**settings)
    cls = getattr(transformers, f"{family}{ending}")
    whole = cls(config).float().eval()
    whole.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    expected = whole(input_ids=IDS).logits.detach()
    request = graftlm.RunConfig(
        out=str(tmp_path / "run"),
        method="qlora",
        device="cpu",
        model=graftlm.ModelConfig(name=str(tmp_path / "model")),
        data=graftlm.DataConfig(train=str(rows_file), eval=str(rows_file), max_length=64),
        lora=graftlm.LoRAConfig(rank=4),
        train=graftlm.TrainConfig(steps=6, batch_size=4, learning_rate=5e-3),
    )
    result = graftlm.run(request, progress=False)
    assert result.eval_loss_after < result.eval_loss_before
    live, _ = graftlm.load_model(tmp_path / "model", quantize=None)
    torch.testing.assert_close(live(input_ids=IDS).logits, expected, rtol=0, atol=1e-4)
    graftlm.load_adapter(live, tmp_path / "run")
    names = list(lora_modules(live))
    assert len(names) == ADAPTED.get(family, 14)  # none of the side that sees
    assert not any("vis" in name for name in names)
    logits = live(input_ids=IDS).logits.detach()
    assert float((logits - expected).abs().max()) > 1e-3
    again = peft.PeftModel.from_pretrained(whole, str(tmp_path / "run" / "adapter")).eval()
    torch.testing.assert_close(again(input_ids=IDS).logits, logits, rtol=0, atol=1e-4)
    graftlm.merge_to_folder(tmp_path / "run", tmp_path / "merged", onto="original")
    merged = cls.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    torch.testing.assert_close(merged(input_ids=IDS).logits, logits, rtol=0, atol=1e-4)


def test_rows_with_images_are_refused_in_a_sentence(tmp_path: Path, tiny_llama: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "what", "completion": "a cat", "image": "cat.png"}\n')
    request = graftlm.RunConfig(
        out=str(tmp_path / "run"),
        method="lora",
        model=graftlm.ModelConfig(name=str(tiny_llama)),
        data=graftlm.DataConfig(train=str(file)),
        train=graftlm.TrainConfig(steps=1),
    )
    with pytest.raises(DataError, match="image"):
        graftlm.run(request, progress=False)
