"""Plans for a GPU that is not here: its attention, its data sheet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from graftlm.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from graftlm.errors import ConfigError
from graftlm.models.host_layers import layer_sizes
from graftlm.planning import make_plan
from graftlm.planning.calibration import speed_of
from graftlm.planning.fake_model import without_tensors
from graftlm.planning.option import Method, Option
from graftlm.system.cards import CARDS, card_named


def llama(layers: int = 2) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        dtype="bfloat16",
    )


def planned(length: int, packing: bool = False, card: str | None = "A100") -> dict[bool, int]:
    config = RunConfig(
        data=DataConfig(max_length=length, packing=packing), train=TrainConfig(batch_size=2)
    )
    plan = make_plan(config, architecture=llama(), device="cuda", card=card, methods=["qlora"])
    return {o.gradient_checkpointing: o.predicted_peak_bytes for o in plan.options}


def test_attention_of_a_gpu_keeps_no_scores() -> None:
    short, long = planned(1024), planned(4096)
    for checkpointing, peak in long.items():
        assert peak < 5 * short[checkpointing]  # scores would make it sixteen times as much
        scores = 2 * 2 * 8 * 4096 * 4096
        assert peak < scores


def test_packed_rows_have_a_mask_and_still_no_scores() -> None:
    assert planned(2048, packing=True)[False] < 2 * 2 * 8 * 2048 * 2048 * 2


def test_the_limit_and_the_time_of_a_card_are_by_its_data_sheet() -> None:
    plans = {
        name: make_plan(
            RunConfig(data=DataConfig(max_length=1024)),
            architecture=llama(),
            device="cuda",
            card=name,
            methods=["qlora"],
        )
        for name in ("T4", "H100")
    }
    assert [plan.limit for plan in plans.values()] == [16_000_000_000, 80_000_000_000]
    slow, quick = (plan.options[0].seconds_per_step for plan in plans.values())
    assert slow is not None
    assert quick is not None
    assert slow > quick > 0


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_a_rate_is_below_what_the_maker_states(card: object) -> None:
    speed = speed_of(card)  # type: ignore[arg-type]
    assert max(speed.rates.values()) < card.narrow  # type: ignore[attr-defined]
    assert speed.rates["bytes"] < card.bandwidth  # type: ignore[attr-defined]


def test_a_card_is_found_by_what_its_driver_calls_it() -> None:
    for said, name in (
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("AMD Instinct MI300X", "MI300X"),
    ):
        card = card_named(said)
        assert card is not None
        assert card.name == name
    assert card_named("NVIDIA T400") is None
    for device, name, said in (
        ("cuda", "A1000", "expected one of T4, RTX 4090"),
        ("cpu", "A100", "a plan for cpu has no use for it"),
    ):
        with pytest.raises(ConfigError, match=said):
            make_plan(RunConfig(), architecture=llama(), device=device, card=name)


def recommended(
    method: Method, limit: str, architecture: LlamaConfig, length: int = 512, offload: Any = "auto"
) -> Option:
    """What a plan takes for one row on a T4, its layers recomputed, 64 positions at once."""
    config = RunConfig(
        method=method,
        device="cuda",
        model=ModelConfig(name="a", offload=offload, embeddings="keep"),
        data=DataConfig(max_length=length),
        train=TrainConfig(batch_size=1, gradient_checkpointing=True, micro_batch_tokens=64),
    )
    plan = make_plan(
        config,
        architecture=architecture,
        device="cuda",
        card="T4",
        methods=[method],
        memory=limit,
        only_recommended=True,
    )
    return plan.recommendation.option


def test_layers_in_host_memory_leave_two_of_them_on_the_card_and_take_the_links_time() -> None:
    def option(offload: str, limit: str) -> Option:
        return recommended("qlora", limit, llama(layers=8), offload=offload)

    there, here = option("none", "16GB"), option("layers", "16GB")
    model = without_tensors(llama(layers=8), RunConfig(method="qlora"), torch.bfloat16)
    sizes = layer_sizes(model.requires_grad_(False))
    assert len(sizes) == 8
    saved = there.predicted_peak_bytes - here.predicted_peak_bytes
    assert saved == sum(sizes) - 2 * max(sizes)
    assert here.seconds_per_step is not None
    assert there.seconds_per_step is not None
    assert here.seconds_per_step >= there.seconds_per_step
    limit = there.predicted_peak_bytes  # which leaves no room
    assert option("auto", "16GB").offload == "none"
    assert option("auto", f"{limit / 1e6:.3f}MB").offload == "layers"


def test_where_layers_cannot_be_in_host_memory_shorter_rows_are_tried_without() -> None:
    def option(length: int, limit: str) -> Option:
        return recommended("full", limit, llama(), length=length)

    long, short = (option(length, "16GB").predicted_peak_bytes for length in (4096, 512))
    found = option(4096, f"{(long + short) / 2e6:.3f}MB")
    assert found.offload == "none"
    assert found.length < 4096
    assert found.fits
