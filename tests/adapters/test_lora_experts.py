"""Adapters on fused experts: PEFT computes, reads and writes the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from graftlm.adapters import (
    activate,
    add_lora,
    lora_config,
    lora_modules,
    merge_in_place,
    remove,
)
from graftlm.adapters.by_row import AdaptersByRow
from graftlm.adapters.fold import fold
from graftlm.adapters.lora_router import LoRARouter
from graftlm.adapters.peft_format import load_adapter, save_adapter
from graftlm.config import LoRAConfig
from graftlm.errors import ArtifactError, ConfigError, ModelError, TargetError
from graftlm.frozen.experts import FrozenExperts
from graftlm.frozen.nf4.frozen_nf4 import FrozenNF4
from graftlm.frozen.weight import WeightSettings
from graftlm.models.experts import expert_weights, hold, rounded_experts
from tests.oracles.mixtures import BOTH, MIXTURES, tiny_mixture
from tests.oracles.peft_experts import IDS, draw, logits, require_same_in_peft

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

ENDS = [BOTH, BOTH[:1], BOTH[1:]]


def adapted(kind: str, parameters: tuple[str, ...] = BOTH, **settings: Any) -> Any:
    """A model with random adapters on its experts and on two linear layers of each layer."""
    model = tiny_mixture(kind)
    targets = ("o_proj",)
    chosen = {"rank": 4, "alpha": 8, "targets": targets, "target_parameters": parameters}
    add_lora(model, LoRAConfig(**(chosen | settings)))
    draw(model)
    return model


def in_nf4(model: Any) -> Any:
    for weight in expert_weights(model).values():
        dense = getattr(weight.module, weight.leaf).detach()
        stack = FrozenExperts.of(dense, weight.transposed, FrozenNF4, WeightSettings())
        hold(weight, stack)
    return model


@pytest.mark.parametrize("parameters", ENDS, ids=["both", "up", "down"])
@pytest.mark.parametrize("kind", MIXTURES)
def test_peft_computes_the_same_from_our_file(
    kind: str, parameters: tuple[str, ...], tmp_path: Path
) -> None:
    model = adapted(kind, parameters)
    require_same_in_peft(model, kind, tmp_path)


# PEFT 0.21 says that it ignores these patterns, which it does not for parameters.
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
@pytest.mark.parametrize("kind", MIXTURES)
def test_we_compute_the_same_from_pefts_file(kind: str, tmp_path: Path) -> None:
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["o_proj"],
        target_parameters=list(BOTH),
        rank_pattern={"gate_up_proj": 6},
        alpha_pattern={"experts.down_proj": 3},
        use_rslora=True,
    )
    theirs = peft.get_peft_model(tiny_mixture(kind), config)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    theirs.save_pretrained(tmp_path)
    model = tiny_mixture(kind)
    report = load_adapter(model, tmp_path)
    assert {rank for name, rank in report.adapted.items() if "gate_up" in name} == {6}
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=2e-5)
    assert lora_config(model).target_parameters == BOTH
    again = tiny_mixture(kind)
    add_lora(again, lora_config(model))
    assert [(n, m.rank, m.scaling) for n, m in lora_modules(again).items()] == [
        (n, m.rank, m.scaling) for n, m in lora_modules(model).items()
    ]


@pytest.mark.parametrize("parameters", ENDS, ids=["both", "up", "down"])
@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss"])
def test_files_from_before_peft_0_19_are_read(
    kind: str, parameters: tuple[str, ...], tmp_path: Path
) -> None:
    """There, A had the weight's second side and B its third, whichever was in and out."""
    model = adapted(kind, parameters)
    save_adapter(model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    for name, module in lora_modules(model).items():
        if not hasattr(module.base, "transposed") or module.base.transposed:
            continue
        A, B = module.lora_A.detach(), module.lora_B.detach()  # [E, r, in], [E, out, r]
        both = len(parameters) == 2
        inner = ".base_layer" if both and "gate_up" in name else ""
        place = f"base_model.model.{name.rpartition('.')[0]}{inner}"
        tensors[f"{place}.lora_A.weight"] = B.transpose(1, 2).flatten(0, 1).contiguous()
        old_B = A.permute(2, 1, 0).flatten(1, 2).contiguous()  # [in, r E]
        tensors[f"{place}.lora_B.weight"] = old_B
        weight = torch.einsum(  # as PEFT 0.18 computes the change of the weight [E, out, in]
            "o r e, e r i -> e i o", old_B.unflatten(1, (4, 4)), B.transpose(1, 2)
        )
        torch.testing.assert_close(weight * module.scaling, module.delta())
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    again = tiny_mixture(kind)
    load_adapter(again, tmp_path)
    torch.testing.assert_close(logits(again), logits(model))


def test_a_square_weight_is_read_by_the_version_in_the_config(tmp_path: Path) -> None:
    model = adapted("olmoe", BOTH[:1])
    save_adapter(model, tmp_path)
    from graftlm.adapters.peft_expert_keys import turned_round
    from graftlm.frozen.experts import DenseExperts

    stack = DenseExperts(torch.nn.Parameter(torch.zeros(4, 8, 8)), transposed=False)
    state = {"lora_A.weight": torch.randn(12, 8), "lora_B.weight": torch.randn(8, 12)}
    now = turned_round({"up": state}, torch.nn.Module(), {"up": stack}, "0.21.2")["up"]
    assert all(torch.equal(now[key], state[key]) for key in state)
    old = turned_round({"up": state}, torch.nn.Module(), {"up": stack}, "0.18.1")["up"]
    delta = torch.einsum(
        "o r e, e r i -> e i o",
        state["lora_B.weight"].unflatten(1, (3, 4)),
        state["lora_A.weight"].unflatten(0, (4, 3)),
    )
    again = torch.einsum(
        "o r e, e r i -> e o i",
        old["lora_B.weight"].unflatten(1, (3, 4)),
        old["lora_A.weight"].unflatten(0, (4, 3)),
    )
    torch.testing.assert_close(again, delta)


@pytest.mark.parametrize("stored", [False, True], ids=["dense", "nf4"])
@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_merged_and_folded_experts_equal_the_live_adapter(kind: str, stored: bool) -> None:
    model = in_nf4(tiny_mixture(kind)) if stored else tiny_mixture(kind)
    names = [name for name, _ in tiny_mixture(kind).named_parameters()]
    settings = LoRAConfig(rank=4, targets=("o_proj",), target_parameters=BOTH)
    add_lora(model, settings)
    draw(model)
    live = logits(model)
    folded = fold(model)
    torch.testing.assert_close(logits(model), live, rtol=1e-4, atol=2e-5)
    folded.unmerge()
    torch.testing.assert_close(logits(model), live, rtol=0, atol=0)
    merged = merge_in_place(model)
    torch.testing.assert_close(logits(merged), live, rtol=1e-4, atol=2e-5)
    assert [name for name, _ in merged.named_parameters()] == names
    assert not expert_weights(merged).keys() - expert_weights(tiny_mixture(kind)).keys()


@pytest.mark.parametrize("stored", [False, True], ids=["dense", "nf4"])
def test_several_adapters_add_up_and_come_off(stored: bool) -> None:
    model = in_nf4(tiny_mixture("qwen3_moe")) if stored else tiny_mixture("qwen3_moe")
    before = logits(model)
    names = [name for name, _ in model.named_modules()]
    one = LoRAConfig(rank=2, targets=(), target_parameters=BOTH)
    other = LoRAConfig(rank=3, targets=(), target_parameters=BOTH[:1])
    add_lora(model, one, name="one")
    add_lora(model, other, name="other")
    draw(model)
    parts = []
    for chosen in (["one"], ["other"]):
        activate(model, *chosen)
        parts.append({n: m.delta() for n, m in lora_modules(model, chosen[0]).items()})
    activate(model, "one", "other")
    together = logits(model)
    plain = tiny_mixture("qwen3_moe")
    for name, weight in expert_weights(plain).items():
        fused = getattr(weight.module, weight.leaf).data
        if stored:
            fused.copy_(rounded_experts(fused, False, FrozenNF4, WeightSettings()))
        for part in parts:
            fused += part.get(name, 0)
    torch.testing.assert_close(together, logits(plain), rtol=1e-4, atol=2e-5)
    remove(model, "other")
    remove(model, "one")
    assert torch.equal(logits(model), before)
    assert [name for name, _ in model.named_modules()] == names


def test_requests_that_cannot_be_met_are_refused() -> None:
    model = tiny_mixture("qwen3_moe")
    for settings, said in (
        ({"target_parameters": ("experts.gate_proj",)}, "matches no fused experts.*gate_up_proj"),
        ({"target_parameters": BOTH, "rank": 65}, "rank is larger"),
        ({"target_parameters": BOTH, "variant": "dora"}, "can be adapted"),
        ({"targets": ("gate_up_proj",)}, "matches no module"),
    ):
        with pytest.raises(TargetError, match=said):
            add_lora(model, LoRAConfig(**({"rank": 4, "targets": ("q_proj",)} | settings)))
    with pytest.raises(ConfigError, match="pissa has no form for experts"):
        add_lora(model, LoRAConfig(rank=4, target_parameters=BOTH, init="pissa"))
    assert {type(m).__name__ for m in model.modules()} == {
        type(m).__name__ for m in tiny_mixture("qwen3_moe").modules()
    }


def test_an_adapter_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    save_adapter(adapted("qwen3_moe"), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["target_parameters"].append("experts.gate")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"names the parameter experts\.gate"):
        load_adapter(tiny_mixture("qwen3_moe"), tmp_path)
    config["target_parameters"] = list(BOTH[:1])
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="experts"):
        load_adapter(tiny_mixture("qwen3_moe"), tmp_path)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "glm4_moe"])
def test_adapters_on_every_experts_own_layers_are_fused(
    kind: str, rslora: bool, tmp_path: Path
) -> None:
    """As transformers 4 had them. The oracle adds each update to the experts' own matrices."""
    plain = tiny_mixture(kind)
    names = {"mixtral": ("w1", "w3", "w2")}.get(kind, ("gate_proj", "up_proj", "down_proj"))
    inside = "block_sparse_moe" if kind == "mixtral" else "mlp"
    tensors: dict[str, torch.Tensor] = {}
    torch.manual_seed(3)
    scaling = 6 / 3**0.5 if rslora else 6 / 3
    for path, weight in expert_weights(plain).items():
        fused, layer = getattr(weight.module, weight.leaf).data, path.split(".mlp.")[0]
        leaves = names[:2] if weight.leaf == "gate_up_proj" else names[2:]
        for expert, matrix in enumerate(fused):
            for leaf, part in zip(leaves, matrix.chunk(len(leaves)), strict=True):
                A, B = torch.randn(3, part.shape[1]) / 8, torch.randn(part.shape[0], 3) / 8
                place = f"base_model.model.{layer}.{inside}.experts.{expert}.{leaf}"
                tensors |= {f"{place}.lora_A.weight": A, f"{place}.lora_B.weight": B}
                part += scaling * B @ A
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "use_rslora": rslora}
    config["target_modules"] = [f"experts.{e}.{leaf}" for e in range(4) for leaf in names]
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    model = tiny_mixture(kind)
    report = load_adapter(model, tmp_path)
    assert {rank for name, rank in report.adapted.items() if "gate_up" in name} == {6}
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=2e-5)
    save_adapter(model, tmp_path / "fused")
    again = tiny_mixture(kind)
    load_adapter(again, tmp_path / "fused")
    torch.testing.assert_close(logits(again), logits(model))


ROUTERS = {"mixtral": "gate.weight", "gpt_oss": "router.weight", "deepseek_v3": "gate.weight"}


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
@pytest.mark.parametrize("kind", ROUTERS)
def test_a_router_is_adapted_where_its_weight_is_named(kind: str, tmp_path: Path) -> None:
    parameters = (*BOTH, ROUTERS[kind])
    model = adapted(kind, parameters, rank_pattern={ROUTERS[kind].partition(".")[0]: 2})
    routers = {n: m for n, m in lora_modules(model).items() if isinstance(m, LoRARouter)}
    assert routers
    assert {module.rank for module in routers.values()} == {2}
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(module.lora_A.grad.abs().max() > 0 for module in routers.values())
    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny_mixture(kind), tmp_path)
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=2e-5)
    again = tiny_mixture(kind)
    load_adapter(again, tmp_path)
    live = logits(model)
    torch.testing.assert_close(logits(again), live, rtol=0, atol=0)
    with_router, without = live, logits(adapted(kind, BOTH))
    assert (with_router - without).abs().max() > 1e-3
    torch.testing.assert_close(logits(merge_in_place(again)), live, rtol=1e-4, atol=2e-5)
    add_lora(model, LoRAConfig(rank=2, target_parameters=parameters[2:]), name="second")
    activate(model, "default", "second")
    with pytest.raises(ModelError, match="two adapters are active on one router"):
        logits(model)


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_what_peft_makes_of_all_linear_is_read(kind: str, tmp_path: Path) -> None:
    """PEFT 0.21 adapts the experts and the router of these kinds then."""
    theirs = peft.get_peft_model(
        tiny_mixture(kind), peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    )
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    theirs.save_pretrained(tmp_path)
    model = tiny_mixture(kind)
    report = load_adapter(model, tmp_path)
    assert {rank for name, rank in report.adapted.items() if "gate_up" in name} == {8}
    assert [name for name in report.adapted if name.endswith("mlp.gate")]
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=2e-5)


def test_experts_serve_one_adapter_a_pass() -> None:
    """They see other rows than the batch's, so adapters are not mixed in a pass."""
    model = tiny_mixture("qwen3_moe")
    alone = {}
    for name in ("one", "other"):
        add_lora(model, LoRAConfig(rank=2, target_parameters=BOTH), name=name)
    draw(model)
    for name in ("one", "other"):
        activate(model, name)
        alone[name] = logits(model)
    assert (alone["one"] - alone["other"]).abs().max() > 1e-2
    by_row = AdaptersByRow(model)
    assert not by_row.together
    for name, expected in alone.items():
        with by_row.use([name], IDS.shape[1]):
            torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
