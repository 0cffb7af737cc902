"""What is known of a model is asked of it again when its modules change, and not kept beyond it."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.deepseek_v32 import DeepseekV32Config

from graftlm import evaluate
from graftlm.adapters import add_lora, lora_parameters, merge_in_place, remove
from graftlm.config import LoRAConfig
from graftlm.data import Example, collate
from graftlm.errors import ModelError
from graftlm.models import packing_support
from graftlm.models.capabilities import capabilities, forget, require_left_to_right
from graftlm.training.next_token import next_token_loss
from tests.oracles.model_families import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

ROWS = [Example([5, 9, 2, 7, 30], [False, True, True, True, True]), Example([8, 1], [False, True])]


def peft_loss(model: Any, names: list[str], values: dict[str, torch.Tensor]) -> torch.Tensor:
    """Summed loss of PEFT's model with the same adapters."""
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=names, task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                bare = name.removeprefix("base_model.model.").removesuffix(".default.weight")
                parameter.copy_(values[bare])
    batch = collate(ROWS, 0)
    logits = wrapped(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    targets = batch.labels[:, 1:]
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum"
    )


@pytest.mark.parametrize("names", [["lm_head"], ["lm_head", "q_proj"]], ids=str)
def test_an_adapter_on_the_head_is_in_the_loss_after_an_evaluation(names: list[str]) -> None:
    model = tiny_model("llama")
    before = evaluate(model, ROWS).loss
    add_lora(model, LoRAConfig(rank=4, alpha=8, targets=tuple(names)))
    torch.manual_seed(1)
    with torch.no_grad():
        for _, parameter in lora_parameters(model):
            parameter.normal_(std=0.2)
    values = {name: parameter.detach() for name, parameter in lora_parameters(model)}
    loss, _ = next_token_loss(model, collate(ROWS, 0))
    expected = peft_loss(tiny_model("llama"), names, values)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert abs(float(loss.detach()) / 5 - before) > 1e-3
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for _, p in lora_parameters(model))


@pytest.mark.parametrize("way_out", [remove, merge_in_place])
def test_the_head_is_used_again_when_its_adapter_is_gone(way_out: Any) -> None:
    model = tiny_model("llama")
    plain = capabilities(model).output_head
    assert plain is not None
    add_lora(model, LoRAConfig(rank=4, targets=("lm_head",)))
    assert capabilities(model).output_head is None
    way_out(model)
    again = capabilities(model).output_head
    assert again is not None
    assert again.linear is model.get_output_embeddings()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_no_reason_to_call_a_model_an_encoder(value: float) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight[0] = value
    with pytest.raises(ModelError, match="LlamaForCausalLM computes NaN or infinity"):
        require_left_to_right(model)


def test_a_model_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    passes = []
    forward = model.model.forward
    monkeypatch.setattr(
        model.model, "forward", lambda **given: passes.append(1) or forward(**given)
    )
    first = capabilities(model)
    assert first.keeps_sequences_apart
    assert first.output_head is not None
    asked = len(passes)
    assert capabilities(model).keeps_sequences_apart
    assert capabilities(model).output_head is first.output_head
    assert asked == len(passes) > 0


def test_a_probed_model_is_freed_and_its_modules_keep_their_modes() -> None:
    model = tiny_model("llama").train()
    model.lm_head.eval()
    assert capabilities(model).output_head is not None
    assert model.training
    assert not model.lm_head.training
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def sparse_model(index_topk: int) -> Any:
    config = DeepseekV32Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        index_topk=index_topk,
        index_n_heads=2,
        index_head_dim=16,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_sparse_attention_that_changes_long_rows_is_not_packed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = sparse_model(index_topk=32)
    before, row = torch.arange(9, 49)[None], torch.arange(60)[None]
    positions = torch.cat([torch.arange(40), torch.arange(60)])[None]
    with torch.no_grad():
        behind = model(torch.cat([before, row], 1), position_ids=positions, use_cache=False).logits[
            :, 40:
        ]
        alone = model(row, use_cache=False).logits
    assert (behind - alone).abs().max() > 1e-3 * alone.std()  # what the probe is to see
    assert not capabilities(model).keeps_sequences_apart
    assert model.config.index_topk == 32
    assert {m.index_topk for m in model.modules() if hasattr(m, "index_topk")} == {32}
    forget(model)
    monkeypatch.setattr(packing_support, "_LIMITS", ())
    assert capabilities(model).keeps_sequences_apart  # short rows do not show it


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "mistral"])
def test_windows_keep_sequences_apart(family: str) -> None:
    model = tiny_model(family)
    model.config.sliding_window = 64
    assert capabilities(model).keeps_sequences_apart
    assert model.config.sliding_window == 64
