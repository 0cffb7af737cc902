from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from graftlm.plan.planner import ROOM, Option, Setting
from graftlm.plan.recommend import ladder, needed, recommend
from graftlm.plan.sizes import parse_size

ASKED = st.builds(
    Setting,
    method=st.just("lora"),
    gradient_checkpointing=st.booleans(),
    batch_size=st.integers(1, 24),
    gradient_accumulation_steps=st.integers(1, 4),
    max_length=st.integers(2, 4096),
)
METHODS = st.sampled_from(
    [("full",), ("lora",), ("qlora",), ("lora", "qlora"), ("full", "lora", "qlora")]
)


def predictor(limit: int):
    """A simple model of memory: everything smaller takes less."""

    def predict(setting: Setting) -> Option:
        weights = {"full": 16_000, "lora": 2_000, "qlora": 600}[setting.method]
        token = 1 if setting.gradient_checkpointing else 10
        peak = 500 + weights + token * setting.batch_size * setting.max_length
        return Option(
            **{name: getattr(setting, name) for name in Setting.__dataclass_fields__},
            predicted_peak_bytes=peak,
            components={"framework": 500, "weights": weights},
            peak_at="backward",
            trainable_parameters=1,
            seconds_per_step=None,
            seconds_uncertainty=None,
            fits=peak <= limit * (1 - ROOM),
        )

    return predict


@settings(derandomize=True, deadline=None)
@given(ASKED, METHODS)
def test_the_ladder_never_changes_the_update_and_only_descends(
    asked: Setting, methods: tuple
) -> None:
    predict = predictor(1)
    rungs = list(ladder(asked, methods))
    assert len(set(rungs)) == len(rungs)
    rows = asked.batch_size * asked.gradient_accumulation_steps
    for rung in rungs:
        assert rung.batch_size * rung.gradient_accumulation_steps == rows
        assert rung.method in methods
        assert rung.max_length <= asked.max_length
    smallest = min(predict(rung).predicted_peak_bytes for rung in rungs)
    assert predict(rungs[-1]).predicted_peak_bytes == smallest


@settings(derandomize=True, deadline=None)
@given(ASKED, METHODS, st.integers(100, 200_000))
def test_what_is_recommended_fits_or_says_what_would(
    asked: Setting, methods: tuple, limit: int
) -> None:
    found = recommend(asked, methods, limit, predictor(limit))
    if found.missing:
        assert not any(predictor(limit)(rung).fits for rung in ladder(asked, methods))
        enough = limit + found.missing
        assert predictor(enough)(found.option.setting).fits
        assert predictor(parse_size(needed(found.option)))(found.option.setting).fits
        assert "nothing fits" in found.why
    else:
        assert found.option.fits
        assert found.option.predicted_peak_bytes <= limit
        first = next(r for r in ladder(asked, methods) if predictor(limit)(r).fits)
        assert found.option.setting == first


def test_lora_where_it_fits_qlora_where_it_does_not_then_smaller() -> None:
    asked = Setting("lora", False, 8, 1, 100)

    def taken(limit: int) -> Setting:
        return recommend(asked, ("lora", "qlora"), limit, predictor(limit)).option.setting

    assert taken(20_000) == asked
    assert taken(10_300) == Setting("qlora", False, 8, 1, 100)
    assert taken(4_000) == Setting("lora", True, 8, 1, 100)
    assert taken(2_200) == Setting("qlora", True, 8, 1, 100)
    assert taken(1_500) == Setting("qlora", True, 2, 4, 100)
