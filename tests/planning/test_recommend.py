from __future__ import annotations

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st

from graftlm.config import Embeddings, parse_size
from graftlm.planning.option import ROOM, Option, Setting
from graftlm.planning.recommend import ladder, needed, recommend

ASKED = st.builds(
    Setting,
    method=st.just("lora"),
    gradient_checkpointing=st.booleans(),
    micro_batch_tokens=st.none() | st.integers(1, 1000),
    max_length=st.integers(2, 4096),
)
EMBEDDINGS = st.sampled_from([("keep",), ("keep", "int8"), ("int8",)])
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
        coded = setting.embeddings == "int8"
        peak = 500 + weights + token * rows * setting.max_length - 300 * coded
        peak = max(peak, 500 + weights + 200 * coded)  # while they are loaded
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


def setting_of(option: Option) -> Setting:
    return Setting(*(getattr(option, name) for name in Setting.__dataclass_fields__))


def kept(setting: Setting) -> Setting:
    return dataclasses.replace(setting, embeddings="keep")


@settings(derandomize=True, deadline=None)
@given(ASKED, METHODS, EMBEDDINGS)
def test_the_ladder_never_changes_the_update_and_only_descends(
    asked: Setting, methods: tuple, embeddings: tuple
) -> None:
    predict = predictor(1)
    rungs = list(ladder(asked, methods, at_once(asked), embeddings))
    assert len(set(rungs)) == len(rungs)
    for rung in rungs:
        assert rung.method in methods
        assert rung.embeddings in (("keep",) if rung.method == "full" else embeddings)
        assert rung.max_length <= asked.max_length
        assert at_once(rung) <= at_once(asked)
    smallest = min(predict(rung).predicted_peak_bytes for rung in rungs)
    # The last one, or the same with embeddings the other way: 8 bits take more to load.
    last = [rung for rung in rungs if kept(rung) == kept(rungs[-1])]
    assert min(predict(rung).predicted_peak_bytes for rung in last) == smallest


@settings(derandomize=True, deadline=None)
@given(ASKED, METHODS, EMBEDDINGS, st.integers(100, 200_000))
def test_what_is_recommended_fits_or_says_what_would(
    asked: Setting, methods: tuple, embeddings: tuple, limit: int
) -> None:
    rungs = ladder(asked, methods, at_once(asked), embeddings)
    found = recommend(rungs, limit, predictor(limit))
    if found.missing:
        assert not any(predictor(limit)(rung).fits for rung in rungs)
        enough = limit + found.missing
        assert predictor(enough)(found.option).fits
        assert predictor(parse_size(needed(found.option)))(found.option).fits
        assert "nothing fits" in found.why
    else:
        assert found.option.fits
        assert found.option.predicted_peak_bytes <= limit
        first = next(rung for rung in rungs if predictor(limit)(rung).fits)
        assert setting_of(found.option) == first


def taken(limit: int, *embeddings: Embeddings) -> Setting:
    asked = Setting("lora", False, None, 100)
    methods = ("lora", "qlora")
    rungs = ladder(asked, methods, ROWS * 100, embeddings)
    return setting_of(recommend(rungs, limit, predictor(limit)).option)


def test_lora_where_it_fits_qlora_where_it_does_not_then_smaller() -> None:
    assert taken(20_000, "keep") == Setting("lora", False, None, 100)
    assert taken(10_300, "keep") == Setting("qlora", False, None, 100)
    assert taken(6_000, "keep") == Setting("qlora", False, 400, 100)
    assert taken(4_000, "keep") == Setting("lora", True, None, 100)
    assert taken(2_200, "keep") == Setting("qlora", True, None, 100)
    assert taken(1_500, "keep") == Setting("qlora", True, 200, 100)


def test_embeddings_in_8_bits_come_before_4_bit_weights_and_before_recomputing() -> None:
    assert taken(20_000, "keep", "int8") == Setting("lora", False, None, 100)
    assert taken(11_200, "keep", "int8") == Setting("lora", False, None, 100, "int8")
    assert taken(10_300, "keep", "int8") == Setting("qlora", False, None, 100)
    assert taken(6_000, "keep", "int8") == Setting("qlora", False, 400, 100)
    assert taken(5_300, "keep", "int8") == Setting("qlora", False, 400, 100, "int8")
    assert taken(4_000, "keep", "int8") == Setting("lora", True, None, 100)
    assert taken(3_400, "keep", "int8") == Setting("lora", True, None, 100, "int8")
    # a hundred positions at once take so little that loading in 8 bits would be the peak
    assert taken(1_310, "keep", "int8") == Setting("qlora", True, 100, 100)


def test_what_a_model_cannot_have_is_passed_over() -> None:
    tried: list[Setting] = []

    def without_int8(setting: Setting) -> Option | None:
        tried.append(setting)
        return None if setting.embeddings == "int8" else predictor(10_300)(setting)

    asked = Setting("lora", False, None, 100)
    methods = ("lora", "qlora")
    rungs = ladder(asked, methods, ROWS * 100, ("keep", "int8"))
    found = recommend(rungs, 10_300, without_int8)
    assert setting_of(found.option) == Setting("qlora", False, None, 100)
    assert tried == rungs[:3]


def test_the_sentence_names_8_bits_only_where_the_plan_chose_them() -> None:
    asked = Setting("full", False, None, 100)  # a table begins with it; full keeps its embeddings
    for embeddings, named in ((("int8",), False), (("keep", "int8"), True)):
        limit = 11_200 if named else 10_100
        methods = ("full", "lora", "qlora")
        rungs = ladder(asked, methods, ROWS * 100, embeddings)
        found = recommend(rungs, limit, predictor(limit))
        assert found.option.embeddings == "int8"
        assert setting_of(found.option) != rungs[0]
        assert ("lose hardly anything" in found.why) is named


def test_on_an_accelerator_layers_go_to_the_host_before_rows_are_cut() -> None:
    asked, methods = Setting("lora", False, None, 256), ("lora", "qlora")
    without = ladder(asked, methods, ROWS * 256, ("keep", "int8"))
    rungs = ladder(asked, methods, ROWS * 256, ("keep", "int8"), offloads=True)
    here = [rung for rung in rungs if rung.offload == "layers"]
    assert [dataclasses.replace(rung, offload="none") for rung in rungs[: len(without) - 2]] == (
        without[:-2]
    )
    assert [rung.max_length for rung in here] == [256, 256, 128, 128]
    assert all(rung.gradient_checkpointing and rung.method == "qlora" for rung in here)
