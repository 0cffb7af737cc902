"""The verdict follows from the figures, and claims nothing that they do not carry."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from graftlm.report.compare.figures import Figures, Spread, figures_of
from graftlm.report.compare.variants import variants
from graftlm.report.compare.verdict import verdict

NAMES = {"full": "Full", "lora": "LoRA", "qlora": "QLoRA"}


def column(method: str, loss: float, memory: float = 1e9, **changed: Any) -> Figures:
    """A column that learned well, overfits and forgets nothing; ``changed`` takes over."""
    plain: dict[str, Any] = {
        "peak_memory": Spread(memory), "seconds": Spread(10.0),
        "trainable_parameters": Spread(1000), "artifact_bytes": Spread(4000),
        "train_loss": Spread(loss), "eval_before": Spread(2.0), "eval_loss": Spread(loss),
        "gap": Spread(0.0), "outside_before": Spread(3.0), "outside_after": Spread(3.0),
        "forgetting": Spread(0.0),
    }  # fmt: skip
    rank = None if method == "full" else 16
    made = Figures(NAMES[method], method, rank, seeds=1, tokens=1000, **plain)
    return dataclasses.replace(made, **changed)


def several(mean: float, deviation: float) -> Spread:
    return Spread(mean, deviation, 3)


def test_the_cheapest_of_those_as_good_is_taken() -> None:
    said = verdict([column("lora", 1.0, 2e9), column("qlora", 1.004, 0.76e9)])
    assert said[0] == (
        "Take QLoRA: it reached LoRA's held-out loss within 0.4 % in 38 % of its memory and "
        "about the same time."
    )


def test_a_cheaper_method_that_is_worse_is_not_taken() -> None:
    said = verdict([column("lora", 1.0, 2e9), column("qlora", 1.05, 0.76e9)])
    assert said[0].startswith("Take LoRA: the lowest held-out loss, 1.00, in 2.00 GB; no method")
    assert "QLoRA ended 5.0 % above LoRA's held-out loss, in 38 % of its memory" in said[1]


def test_no_saving_is_claimed_where_there_is_none() -> None:
    """A model so small that its framework is all of the memory."""
    said = verdict([column("lora", 1.0, 500e6), column("qlora", 1.001, 499e6)])
    assert said[0] == "Take LoRA: the lowest held-out loss, 1.00, in the least memory, 0.50 GB."
    assert "about the same memory" in said[1]


def test_equal_losses_are_level() -> None:
    said = verdict([column("lora", 1.0), column("qlora", 1.0)])
    assert said[1].startswith(
        "QLoRA ended level with LoRA's held-out loss, in about the same memory"
    )


def test_the_best_and_cheapest_is_taken_and_dearer_ones_are_named() -> None:
    said = verdict([column("full", 1.1, 3e9, seconds=Spread(25)), column("qlora", 1.0)])
    assert said[0] == "Take QLoRA: the lowest held-out loss, 1.00, in the least memory, 1.00 GB."
    assert said[1].endswith("in 3.00 times its memory and 2.50 times its time.")


def test_nothing_is_taken_when_nothing_was_learned() -> None:
    said = verdict([column("lora", 2.1), column("qlora", 2.3)])
    assert said[0].startswith("Take none of them: no method lowered the held-out loss")
    assert not any("above LoRA's" in sentence for sentence in said)


def test_a_method_that_learned_nothing_is_never_as_good() -> None:
    said = verdict([column("lora", 1.99, 2e9), column("qlora", 2.0)])
    assert said[0].startswith("Take LoRA")
    assert "no better than before training" in said[1]


@pytest.mark.parametrize(("deviation", "taken"), [(0.2, "QLoRA"), (0.01, "LoRA")])
def test_seeds_decide_whether_a_difference_is_one(deviation: float, taken: str) -> None:
    """8 % apart: nothing if the seeds scatter by 20 %, real if they scatter by 1 %."""
    columns = [
        column("lora", 1.0, 2e9, eval_loss=several(1.0, deviation), seeds=3),
        column("qlora", 1.08, 1e9, eval_loss=several(1.08, deviation), seeds=3),
    ]
    said = verdict(columns)
    assert said[0].startswith(f"Take {taken}")
    assert ("3 seeds do not confirm" in said[0]) == (taken == "QLoRA")
    assert said[-1] == "Means over 3 seeds."


def test_overfitting_and_forgetting_name_who() -> None:
    full = column("full", 1.2, train_loss=Spread(0.8), gap=Spread(0.4), forgetting=Spread(0.45))
    text = " ".join(verdict([full, column("lora", 1.0)]))
    assert "above the training loss, Full by 50 %;" in text
    assert "rose with Full by 15 %, with the others by less than 2 %." in text
    calm = " ".join(verdict([column("full", 1.2), column("lora", 1.0)]))
    assert "No overfitting to speak of" in calm
    assert "None forgot" in calm


@pytest.mark.parametrize("method", ["full", "lora"])
def test_runs_of_a_few_steps_recommend_nothing(method: str) -> None:
    columns = [column(method, 1.0, steps=8), column("qlora", 1.5, steps=8)]
    assert verdict(columns)[0] == (
        f"No verdict yet: 8 steps are too few to compare by. So far {NAMES[method]} is lowest, at "
        "1.00. Longer runs would tell: --steps 120."
    )


def test_a_loss_that_still_falls_recommends_nothing() -> None:
    columns = [column("lora", 1.0, steps=100, late=0.03), column("qlora", 1.1, steps=100, late=0.2)]
    said = verdict(columns)
    assert said[0].startswith(
        "No verdict yet: the held-out loss still falls (QLoRA made 20 % of its progress in the "
        "last quarter)."
    )
    assert not any(sentence.startswith("Take") for sentence in said)
    settled = [dataclasses.replace(one, late=0.05) for one in columns]
    assert verdict(settled)[0].startswith("Take LoRA")


def test_how_late_a_loss_fell_is_read_from_its_curve() -> None:
    variant = variants(["lora"], [4])[0]
    spread = dict.fromkeys(("outside_before", "outside_after", "train_loss", "artifact_bytes"), 1.0)
    summary = dict.fromkeys(
        ("tokens", "peak_memory_bytes", "wall_seconds", "trainable_parameters", "steps"), 100
    ) | {"eval_loss_before": 2.0, "eval_loss_after": 1.0}

    def late(*losses: float) -> float | None:
        curve = [(25.0 * i, loss) for i, loss in enumerate(losses)]
        return figures_of(variant, [(summary, spread)], [curve]).late

    assert late(2.0, 1.5, 1.3, 1.2, 1.0) == pytest.approx(0.2)
    assert late(2.0, 1.1, 1.0, 1.0, 1.0) == 0
    assert late(2.0, 1.0) is None  # nothing was measured on the way
    assert late(1.0, 1.5, 1.5, 1.5, 1.5) is None


def test_unequal_tokens_are_said_first() -> None:
    said = verdict([column("lora", 1.0), column("qlora", 1.0, tokens=999)])
    assert "no fair comparison" in said[0]
    assert "QLoRA 999" in said[0]


def test_one_method_alone_is_described_not_recommended() -> None:
    said = verdict([column("lora", 1.0)])
    assert said[0] == "LoRA lowered the held-out loss from 2.00 to 1.00 in 1.00 GB."
    [first, *_] = verdict([column("lora", 2.5)])
    assert first.startswith("Take none of them: LoRA did not lower")


def test_answers_are_shown_where_they_were_asked_for() -> None:
    right = column("lora", 1.0, exact_match=Spread(0.72))
    other = column("qlora", 1.1, exact_match=Spread(0.5))
    said = verdict([right, other])
    assert "Held-out rows answered exactly right: LoRA 72% and QLoRA 50%." in said
