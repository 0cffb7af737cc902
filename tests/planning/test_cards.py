"""Plans for a GPU that is not here: its attention, its data sheet."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig

from graftlm.config import DataConfig, RunConfig, TrainConfig
from graftlm.errors import ConfigError
from graftlm.planning import make_plan
from graftlm.planning.data_sheet import card_of, speed_of
from graftlm.system.cards import CARDS, card_named
from graftlm.system.placement import Placement

GPU = Placement.on("cuda")


def llama() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
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
    assert speed.bandwidth < card.bandwidth  # type: ignore[attr-defined]


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
    assert card_of(None, GPU) is None
    with pytest.raises(ConfigError, match="expected one of T4, RTX 4090"):
        card_of("A1000", GPU)
