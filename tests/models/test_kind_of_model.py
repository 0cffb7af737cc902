"""What is no causal language model is refused in one sentence that says what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from graftlm.config import TrainConfig
from graftlm.data import Example
from graftlm.errors import ModelError
from graftlm.models import load_weights
from graftlm.models.capabilities import capabilities
from graftlm.models.load import load_config
from graftlm.training import train
from tests.oracles.model_families import FAMILIES, tiny_model

OTHERS: dict[str, tuple[str, str | None, str]] = {  # config, class that config.json names, words
    "bert": ("BertConfig", "BertForMaskedLM", "an encoder"),
    "roberta": ("RobertaConfig", None, "an encoder"),
    "electra": ("ElectraConfig", "ElectraForPreTraining", "an encoder"),
    "xlm": ("XLMConfig", "XLMWithLMHeadModel", "an encoder"),
    "bert-generation": ("BertGenerationConfig", "BertGenerationEncoder", "an encoder"),
    "modernbert": ("ModernBertConfig", "ModernBertForMaskedLM", "an encoder"),
    "t5": ("T5Config", "T5ForConditionalGeneration", "a sequence-to-sequence model"),
    "bart": ("BartConfig", "BartForConditionalGeneration", "a sequence-to-sequence model"),
    "classifier": ("LlamaConfig", "LlamaForSequenceClassification", "a classifier"),
    "tagger": ("LlamaConfig", "LlamaForTokenClassification", "a classifier"),
    "vit": ("ViTConfig", "ViTModel", "a model of images"),
    "clip": ("CLIPConfig", "CLIPModel", "a model of text together with images or sound"),
    "blip-2": (
        "Blip2Config",
        "Blip2ForConditionalGeneration",
        "a model of text together with images or sound",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_kind_of_model_is_refused_in_a_sentence(kind: str, tmp_path: Path) -> None:
    name, architecture, words = OTHERS[kind]
    config = getattr(transformers, name)()
    config.architectures = None if architecture is None else [architecture]
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"holds {words}") as refused:
        load_config(tmp_path)
    assert len(str(refused.value)) - len(str(tmp_path)) < 250


@pytest.mark.parametrize("family", FAMILIES)
def test_causal_families_are_taken(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    assert load_config(tmp_path).model_type == model.config.model_type
    assert capabilities(model).reads_left_to_right


def test_a_decoder_of_an_encoder_family_is_taken(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        is_decoder=True,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert capabilities(load_weights(tmp_path, quantize=None)).reads_left_to_right


def test_a_model_that_sees_what_it_would_predict_is_not_trained(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        is_decoder=False,
    )
    model = transformers.BertLMHeadModel(config)
    assert not capabilities(model).reads_left_to_right
    rows = [Example([1, 2, 3, 4], [False, True, True, True])]
    with pytest.raises(ModelError, match="depends on the tokens after it"):
        train(model, tiny_tokenizer, rows, TrainConfig(steps=1), out=tmp_path / "run")
