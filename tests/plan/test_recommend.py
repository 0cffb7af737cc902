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
    micro_batch_tokens=st.none() | st.integers(1, 1000),
    max_length=st.integers(2, 4096),
)
ROWS = 8
METHODS = st.sampled_from(
    [("full",), ("lora",), ("qlora",), ("lora", "qlora"), ("full", "lora", "qlora")]
)


def at_once(setting: Setting) -> int:
    whole = ROWS * setting.max_length
    return min(whole, setting.micro_batch_tokens or whole)


def predictor(limit: int):
    """A simple model of memory: everything smaller takes less, down to a row at a time."""

    def predict(setting: Setting) -> Option:
        weights = {"full": 16_000, "lora": 2_000, "qlora": 600}[setting.method]
        token = 1 if setting.gradient_checkpointing else 10
        rows = max(1, at_once(setting) // setting.max_length)
        peak = 500 + weights + token * rows * setting.max_length
        return Option(
            rows=rows,
            length=setting.max_length,
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
    rungs = list(ladder(asked, methods, at_once(asked)))
    assert len(set(rungs)) == len(rungs)
    for rung in rungs:
        assert rung.method in methods
        assert rung.max_length <= asked.max_length
        assert at_once(rung) <= at_once(asked)
    smallest = min(predict(rung).predicted_peak_bytes for rung in rungs)
    assert predict(rungs[-1]).predicted_peak_bytes == smallest


@settings(derandomize=True, deadline=None)
@given(ASKED, METHODS, st.integers(100, 200_000))
def test_what_is_recommended_fits_or_says_what_would(
    asked: Setting, methods: tuple, limit: int
) -> None:
    found = recommend(asked, methods, limit, at_once(asked), predictor(limit))
    if found.missing:
        rungs = ladder(asked, methods, at_once(asked))
        assert not any(predictor(limit)(rung).fits for rung in rungs)
        enough = limit + found.missing
        assert predictor(enough)(found.option.setting).fits
        assert predictor(parse_size(needed(found.option)))(found.option.setting).fits
        assert "nothing fits" in found.why
    else:
        assert found.option.fits
        assert found.option.predicted_peak_bytes <= limit
        rungs = ladder(asked, methods, at_once(asked))
        first = next(rung for rung in rungs if predictor(limit)(rung).fits)
        assert found.option.setting == first


def test_lora_where_it_fits_qlora_where_it_does_not_then_smaller() -> None:
    asked = Setting("lora", False, None, 100)

    def taken(limit: int) -> Setting:
        found = recommend(asked, ("lora", "qlora"), limit, ROWS * 100, predictor(limit))
        return found.option.setting

    assert taken(20_000) == asked
    assert taken(10_300) == Setting("qlora", False, None, 100)
    assert taken(6_000) == Setting("qlora", False, 400, 100)
    assert taken(4_000) == Setting("lora", True, None, 100)
    assert taken(2_200) == Setting("qlora", True, None, 100)
    assert taken(1_500) == Setting("qlora", True, 200, 100)
