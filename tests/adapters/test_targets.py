from __future__ import annotations

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from graftlm.adapters import add_lora, lora_modules, merge_adapters
from graftlm.adapters.names import matching, pattern_value
from graftlm.adapters.targets import all_linear
from graftlm.config import LoRAConfig
from graftlm.errors import TargetError
from tests.oracles.model_families import FAMILIES, tiny_model

# PEFT 0.21 asks transformers 5.23 through a property that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

PARTS = st.sampled_from(["a", "b", "q_proj", "0", "1", "10", "layers", "x.y"])
NAMES = st.lists(PARTS, min_size=1, max_size=4).map(".".join)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "mixtral"])
def test_all_linear_is_the_set_peft_takes(family: str) -> None:
    # PEFT 0.21 also wraps Mixtral's fused experts, which are no linear layers: see below.
    config = peft.LoraConfig(r=2, target_modules="all-linear", fan_in_fan_out=family == "gpt2")
    theirs = peft.get_peft_model(tiny_model(family), config)
    wrapped = {
        name.removeprefix("base_model.model.")
        for name, module in theirs.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    assert set(all_linear(tiny_model(family))) == wrapped


def test_mixtral_experts_are_skipped_by_name_and_reason() -> None:
    report = add_lora(tiny_model("mixtral"), LoRAConfig(rank=4))
    assert {name.rpartition(".")[2] for name in report.adapted} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    }
    reason = "4 experts, not among the target_parameters"
    assert report.skipped["model.layers.0.mlp.experts.gate_up_proj"] == reason
    assert report.skipped["model.layers.0.mlp.experts.down_proj"] == reason


@settings(max_examples=200, deadline=None, derandomize=True)
@given(name=NAMES, targets=st.lists(NAMES, min_size=1, max_size=3))
def test_lists_match_as_peft_matches_them(name: str, targets: list[str]) -> None:
    theirs = check_target_module_exists(peft.LoraConfig(target_modules=targets), name)
    assert bool(matching([name], targets)) == bool(theirs)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(name=NAMES, keys=st.lists(NAMES | st.just(r".*\.q_proj") | st.just("^a"), max_size=3))
def test_patterns_match_as_peft_matches_them(name: str, keys: list[str]) -> None:
    patterns = {key: number for number, key in enumerate(keys)}
    assert pattern_value(patterns, name, -1) == patterns.get(get_pattern_key(keys, name), -1)


@pytest.mark.parametrize("pattern", [r".*\.(q|v)_proj", r"model\.layers\.1\..*_proj", r".*down.*"])
def test_a_string_is_a_regular_expression_on_full_names_as_in_peft(pattern: str) -> None:
    theirs = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(r=2, target_modules=pattern))
    model = tiny_model("llama")
    add_lora(model, LoRAConfig(rank=2, targets=pattern))
    assert set(lora_modules(model)) == set(theirs.targeted_module_names)


def test_patterns_give_ranks_and_alphas() -> None:
    model = tiny_model("llama")
    config = LoRAConfig(
        rank=4,
        alpha=8,
        rank_pattern={"v_proj": 2, r"1\.mlp.*": 3},
        alpha_pattern={"q_proj": 16},
        use_rslora=True,
    )
    add_lora(model, config)
    modules = lora_modules(model)
    assert modules["model.layers.0.self_attn.v_proj"].rank == 2
    assert modules["model.layers.1.mlp.up_proj"].rank == 3
    assert modules["model.layers.0.mlp.up_proj"].rank == 4
    assert modules["model.layers.0.self_attn.q_proj"].scaling == pytest.approx(16 / 4**0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ("q_prj",)}, r"target 'q_prj' matches no module; did you mean 'q_proj'"),
        ({"targets": ("q_proj", "qx.zz")}, r"target 'qx\.zz' matches no module"),
        ({"targets": ()}, "targets is empty"),
        ({"targets": "q_proj"}, r"to match the end of names, pass a list: \['q_proj'\]"),
        ({"targets": "(q"}, r"targets '\(q' is not a valid regular expression: missing \)"),
        ({"targets": ("self_attn",)}, r"not model\.layers\.0\.self_attn \(LlamaAttention\)"),
        ({"targets": ("norm",)}, r"model\.norm \(LlamaRMSNorm\)"),
        ({"rank": 33, "targets": ("k_proj",)}, r"k_proj \[32, 64\] with rank 33"),
        ({"layers": (0, 99)}, r"layers \[99\]: no target stands in these layers"),
        ({"layers_pattern": ("layers",)}, "layers_pattern has no effect without layers"),
        ({"rank": 1000}, r"q_proj \[64, 64\] with rank 1000"),
        ({"exclude": ("q_prj",)}, r"exclude 'q_prj' matches none of the targets; did you mean"),
        ({"targets": ("q_proj",), "exclude": ("q_proj",)}, "exclude removes all targets"),
        ({"rank_pattern": {"q_prj": 2}}, r"rank_pattern key 'q_prj' matches none"),
        ({"alpha_pattern": {"[": 2.0}}, r"alpha_pattern key '\[' is not a valid regular"),
    ],
)
def test_a_request_that_cannot_be_met_is_an_error_that_leaves_the_model_alone(
    settings: dict, message: str
) -> None:
    model = tiny_model("llama")
    with pytest.raises(TargetError, match=message):
        add_lora(model, LoRAConfig(**({"rank": 4} | settings)))
    assert not lora_modules(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_all_problems_are_told_at_once() -> None:
    config = LoRAConfig(rank=33, targets=("q_prj", "k_proj", "norm"))
    with pytest.raises(TargetError) as caught:
        add_lora(tiny_model("llama"), config)
    assert len(str(caught.value).splitlines()) == 3


def test_positions_are_no_token_embedding() -> None:
    with pytest.raises(TargetError, match="OPTLearnedPositionalEmbedding"):
        add_lora(tiny_model("opt"), LoRAConfig(rank=4, targets=("embed_positions",)))


def test_a_second_adapter_is_refused_and_a_merged_model_can_have_one() -> None:
    model = tiny_model("llama")
    add_lora(model, LoRAConfig(rank=4))
    with pytest.raises(TargetError, match="already has adapters"):
        add_lora(model, LoRAConfig(rank=4))
    merge_adapters(model)
    add_lora(model, LoRAConfig(rank=4))


def test_the_output_head_can_be_named() -> None:
    model = tiny_model("llama")
    add_lora(model, LoRAConfig(rank=4, targets=("lm_head",)))
    assert list(lora_modules(model)) == ["lm_head"]
    with torch.no_grad():
        assert model(torch.arange(4)[None]).logits.shape == (1, 4, 260)


def test_all_linear_leaves_out_and_names_layers_smaller_than_the_rank() -> None:
    """As the one-row gate of a shared expert; what the user names is refused."""
    import transformers

    config = transformers.Qwen2MoeConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    gates = [f"model.layers.{i}.mlp.shared_expert_gate" for i in range(2)]
    with pytest.raises(TargetError, match=r"shared_expert_gate \[1, 32\] with rank 16"):
        add_lora(model, LoRAConfig(rank=16, targets=("q_proj", "shared_expert_gate")))
    report = add_lora(model, LoRAConfig(rank=16))
    assert not report.adapted.keys() & set(gates)
    assert "model.layers.0.mlp.shared_expert.up_proj" in report.adapted
    assert {report.skipped[name] for name in gates} == {"a side of 1 is below the rank"}
    assert any("shared_expert_gate ×2" in note for note in report.notes)
