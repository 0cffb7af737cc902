"""Whole plans: against a measured run, as JSON, and what is refused."""

from __future__ import annotations

import importlib
import io
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from graftlm.config import (
    DataConfig,
    LoRAConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    contradictions,
    load_run_config,
    parse_override,
    validate,
)
from graftlm.errors import ConfigError, ModelError, ResourceError, TrainingError
from graftlm.planning import Measured, choose, make_plan, run_trial
from graftlm.planning.baseline_memory import framework_memory
from graftlm.planning.calibration import Calibration
from graftlm.planning.option import ROOM
from graftlm.planning.source import Source
from graftlm.planning.timeline import COMPONENTS
from graftlm.training import run
from graftlm.training.resolve import continued, embeddings_of, with_method

SEVENTY_BILLION = LlamaConfig(
    vocab_size=32000,
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    dtype="bfloat16",
)

NOTHING = Measured(0, 0, 0, 0.0)


def run_of(folder: Path, length: int = 64, batch: int = 2) -> RunConfig:
    return RunConfig(
        model=ModelConfig(name=str(folder)),
        data=DataConfig(max_length=length),
        train=TrainConfig(batch_size=batch),
    )


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> Path:
    """Wide enough for its tensors to stand out from the framework."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=4,
        num_attention_heads=8,
    )
    folder = tmp_path_factory.mktemp("models") / "small"
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("method", "checkpointing"), [("lora", False), ("full", True)])
def test_the_predicted_peak_is_the_measured_one(
    small_model: Path, method: str, checkpointing: bool
) -> None:
    config = run_of(small_model, length=256)
    plan = make_plan(config, memory="100GB", methods=[method])
    option = next(o for o in plan.options if o.gradient_checkpointing == checkpointing)
    measured = run_trial(option.applied(config), length=256)
    assert option.predicted_peak_bytes == pytest.approx(measured.peak_bytes, rel=0.08)


def test_json_has_the_fields_of_the_contract(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = Calibration({"matmul float32": 1e11, "bytes": 1e10, "calls": 1e6}, spread=0.1, share=1.0)
    monkeypatch.setattr("graftlm.planning.planner.calibrate", lambda: idle)
    result = json.loads(json.dumps(make_plan(run_of(tiny_llama), memory="8GB").to_json()))
    assert {"options", "recommended", "verified"} <= result.keys()
    assert len(result["options"]) == 6
    for option in result["options"]:
        assert sum(option["components"].values()) == option["predicted_peak_bytes"]
        assert list(option["components"]) == list(COMPONENTS)
        assert option["fits"] is True
        assert option["seconds_per_step"] > option["seconds_uncertainty"] > 0
    chosen = result["recommended"]
    assert chosen["method"] == "lora"
    assert chosen["missing_bytes"] == 0
    assert f"--model {tiny_llama}" in chosen["command"]
    assert "--method lora" in chosen["command"]


def test_seventy_billion_parameters_are_planned_from_the_config_alone() -> None:
    config = RunConfig(train=TrainConfig(batch_size=1, gradient_checkpointing=True))
    plan = make_plan(
        config, architecture=SEVENTY_BILLION, memory="80GB", device="cuda", methods=["qlora"]
    )
    option = plan.recommendation.option
    weights = option.components["weights"] + option.components["quantization_state"]
    parameters = 68_451_041_280  # in the linear layers of the 80 decoder layers
    rest = 2 * 32000 * 8192 * 2
    assert weights == pytest.approx(parameters * 4.127 / 8 + rest, rel=0.001)
    assert option.fits
    assert option.seconds_per_step is None


@pytest.mark.parametrize("embeddings", ["auto", "int8"])
def test_a_recommended_command_parses_back_to_the_option(tiny_llama: Path, embeddings: str) -> None:
    config = run_of(tiny_llama, length=4096, batch=6)
    said = config.model.model_copy(update={"embeddings": embeddings})
    config = config.model_copy(update={"model": said})
    plan = make_plan(config, memory="650MB", methods=["qlora"])
    words = shlex.split(plan.command)
    overrides = [
        parse_override(word) for flag, word in itertools.pairwise(words) if flag == "--set"
    ]
    again = load_run_config(None, overrides)
    option = plan.recommendation.option
    assert embeddings_of(again) == option.embeddings
    assert option.embeddings == ("int8" if embeddings == "int8" else "keep")
    assert again.train.batch_size == config.train.batch_size
    assert again.train.micro_batch_tokens == option.micro_batch_tokens
    assert again.train.gradient_checkpointing == option.gradient_checkpointing
    assert again.data.max_length == option.max_length


def test_lengths_of_the_data_decide_not_the_limit_on_them(tiny_llama: Path) -> None:
    config = run_of(tiny_llama, length=2048)
    short, long = (
        make_plan(config, memory="8GB", methods=["lora"], lengths=lengths).options[0]
        for lengths in ([20, 30, 40], [20, 30, 1500])
    )
    assert short.predicted_peak_bytes < long.predicted_peak_bytes


def test_auto_takes_what_fits_and_refuses_what_cannot(tiny_llama: Path) -> None:
    auto = run_of(tiny_llama).model_copy(update={"method": "auto"})
    chosen, _ = choose(auto.model_copy(update={"memory": "8GB"}))
    assert chosen.method == "lora"
    with pytest.raises(ResourceError, match=r"nothing fits in 100 MB: .* more memory would do"):
        choose(auto.model_copy(update={"memory": "100MB"}))
    asked = run_of(tiny_llama).model_copy(update={"method": "full", "memory": "8GB"})
    assert choose(asked)[0] == with_method(asked, "full")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"memory": "lots"}, "'lots' is not a size"),
        ({"device": "tpu"}, "device 'tpu': expected cpu or cuda"),
        ({"methods": ["dora"]}, "method 'dora': expected full, lora or qlora"),
        ({"methods": []}, "no method to consider"),
        ({"device": "cuda", "verify": "all"}, "cannot be verified: torch finds none"),
    ],
)
def test_a_wrong_request_is_named(tiny_llama: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(run_of(tiny_llama), **arguments)


@pytest.mark.parametrize(
    ("changes", "left", "why"),
    [
        ({"lora": {"init": "loftq"}}, ["qlora"], "lora.init=loftq .* use qlora"),
        ({"lora": {"probe_ranks": True}}, ["lora", "qlora"], "method=full, which has no ranks"),
        ({"distributed": "fsdp"}, ["lora", "qlora"], "method=full, which freezes none"),
        ({"model": {"offload": "layers"}}, ["lora", "qlora"], "method=full: it trains the layers"),
        ({"model": {"dtype": "bfloat16", "embeddings": "int8"}}, ["full", "lora", "qlora"], "^$"),
    ],
    ids=["loftq", "ranks", "fsdp", "offload", "all"],
)
def test_a_plan_leaves_out_the_methods_that_training_refuses_and_says_why(
    tiny_llama: Path, changes: dict, left: list, why: str
) -> None:
    tree = run_of(tiny_llama).model_dump()
    for name, values in changes.items():
        tree[name] = tree[name] | values if isinstance(values, dict) else values
    config = validate(RunConfig, tree)
    common = {"memory": "8GB", "device": "cuda", "processes": 1 + ("distributed" in changes)}
    plan = make_plan(config, **common)
    assert {option.method for option in plan.options} == set(left)
    assert re.search(why, "\n".join(plan.left_out))
    assert plan.recommendation.option.method in left
    assert not contradictions(plan.recommendation.option.applied(config))
    if "full" not in left:
        with pytest.raises(ConfigError, match=why):
            make_plan(config, **common, methods=["full"])


def test_what_is_for_a_card_is_not_planned_for_a_cpu(tiny_llama: Path) -> None:
    config = run_of(tiny_llama)
    model = config.model.model_copy(update={"offload": "layers"})
    with pytest.raises(ConfigError, match="offload=layers does nothing on cpu"):
        make_plan(config.model_copy(update={"model": model}), memory="8GB")


def test_another_objective_is_not_planned_as_next_token(tiny_llama: Path) -> None:
    config = run_of(tiny_llama).model_copy(update={"memory": "8GB"})
    train = config.train.model_copy(update={"objective": "preference"})
    with pytest.raises(ConfigError, match=r"objective=preference: .* next_token only.*memory"):
        choose(config.model_copy(update={"train": train}))


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "fp8"},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
    ],
)
def test_what_training_refuses_is_not_planned(
    tiny_llama: Path, tmp_path: Path, quantization: dict
) -> None:
    settings = json.loads((tiny_llama / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(settings | {"quantization_config": quantization})
    )
    with pytest.raises(ModelError, match="Start from the original model"):
        make_plan(run_of(tmp_path), memory="8GB")


def test_the_command_of_a_plan_for_a_gpu_names_the_gpu() -> None:
    plan = make_plan(
        RunConfig(),
        architecture=LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2),
        memory="8GB",
        device="cuda",
        methods=["lora"],
    )
    assert plan.recommendation.option.fits
    assert "--set device=cuda" in plan.command
    assert plan.to_json()["recommended"]["command"] == plan.command


def test_what_is_recommended_is_run_and_says_how_far_it_is(tiny_llama: Path) -> None:
    said: list[str] = []
    config = run_of(tiny_llama, length=32)
    # Settings that a trial run has no rows and no use for.
    changes = {"eval_steps": 1, "early_stopping_patience": 1, "tracking": "tensorboard"}
    train = config.train.model_copy(update=changes)
    data = config.data.model_copy(update={"eval_fraction": 0.5})
    plan = make_plan(
        config.model_copy(update={"train": train, "data": data}),
        memory="8GB",
        methods=["lora", "qlora"],
        verify="recommended",
        progress=said.append,
    )
    assert [entry.option for entry in plan.verified] == [plan.recommendation.option]
    assert abs(plan.verified[0].error) < 0.08
    (before,) = [text for text in said if "stopped after 600 s" in text]
    assert any("loading" in text for text in said[said.index(before) :])


@pytest.mark.parametrize("say", [True, False])
def test_the_plan_of_a_training_run_says_how_far_it_is(
    tiny_llama: Path, say: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here in this process; a run asks another one."""
    module = importlib.import_module("graftlm.planning.decide")
    config = run_of(tiny_llama).model_copy(update={"method": "auto"})
    asked = {"config": config.model_dump(mode="json"), "lengths": [], "limit": 8_000_000_000}
    text = json.dumps({**asked, "processes": 1, "say": say})
    monkeypatch.setattr("graftlm.system.heartbeat.EVERY", 0.02)
    monkeypatch.setattr(module, "end_with_parent", lambda: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    module.answer()
    said = capsys.readouterr()
    assert json.loads(said.out)["config"]["method"] == "lora"
    assert ("planning: lora, embeddings keep, 64 long: " in said.err) is say


def test_what_is_not_a_language_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        make_plan(run_of(tmp_path / "nowhere"), memory="1GB")
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(ModelError, match="resnet"):
        make_plan(run_of(tmp_path), memory="1GB")


def test_a_trial_run_that_fails_says_why(tiny_llama: Path) -> None:
    config = run_of(tiny_llama).model_copy(update={"method": "lora"})
    config = config.model_copy(
        update={"lora": config.lora.model_copy(update={"targets": ("no_such",)})}
    )
    with pytest.raises(TrainingError, match="no_such"):
        run_trial(config, length=8)


def test_a_process_reports_its_own_peak_not_its_parents() -> None:
    code = (
        "import subprocess, sys; x = bytearray(400_000_000);"
        "child = 'from graftlm.system import peak_resident; print(peak_resident())';"
        "print(subprocess.check_output([sys.executable, '-c', child], text=True))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200_000_000


def test_checkpointing_is_taken_where_it_is_needed(small_model: Path) -> None:
    asked = run_of(small_model, length=4096, batch=8).model_copy(update={"method": "lora"})
    train = asked.train.model_copy(update={"gradient_checkpointing": "auto"})
    auto = asked.model_copy(update={"train": train})
    options = make_plan(asked, memory="100GB", methods=["lora"]).options
    without, with_it = (
        next(o for o in options if o.gradient_checkpointing is wanted).predicted_peak_bytes
        for wanted in (False, True)
    )
    between = f"{(without + with_it) // 2_000_000}MB"
    for memory, wanted in (("100GB", False), (between, True)):
        chosen, _ = choose(auto.model_copy(update={"memory": memory}))
        assert chosen.train.gradient_checkpointing is wanted
        assert chosen.method == "lora"
        assert chosen.train.batch_size == 8
    short = auto.data.model_copy(update={"max_length": 128})  # so that there is less to try
    with pytest.raises(ResourceError, match="nothing fits"):
        choose(auto.model_copy(update={"memory": "100MB", "data": short}))
    with pytest.raises(ResourceError, match="as asked it does not fit"):
        choose(asked.model_copy(update={"memory": between}))


def lora_peak(config: RunConfig, embeddings: str) -> int:
    model = config.model.model_copy(update={"embeddings": embeddings})
    said = config.model_copy(update={"model": model})
    plan = make_plan(said, memory="100GB", methods=["lora"])
    return plan.recommendation.option.predicted_peak_bytes


def limit_over(peak: float) -> str:
    return f"{peak / (1 - ROOM) / 1e6:.3f}MB"


def test_embeddings_in_8_bits_are_taken_where_they_make_lora_fit(small_model: Path) -> None:
    asked = run_of(small_model).model_copy(update={"method": "auto"})
    kept, coded = lora_peak(asked, "keep"), lora_peak(asked, "int8")
    assert kept - coded == pytest.approx(2 * 4096 * 512, rel=0.05)  # a byte less for each weight
    asked = asked.model_copy(update={"memory": limit_over((kept + coded) / 2)})
    chosen, _ = choose(asked)
    assert (chosen.method, chosen.model.embeddings) == ("lora", "int8")
    by_hand, _ = choose(
        asked.model_copy(update={"method": "lora"})
    )  # what keeps the update is first
    assert (by_hand.model.embeddings, by_hand.train.micro_batch_tokens) == ("keep", 64)
    said = asked.model.model_copy(update={"embeddings": "keep"})
    chosen, _ = choose(asked.model_copy(update={"model": said}))
    assert (chosen.method, chosen.model.embeddings) == ("qlora", "keep")
    assert choose(asked.model_copy(update={"memory": "100GB"}))[0].model.embeddings == "keep"


def test_embeddings_that_are_adapted_are_never_put_in_8_bits(small_model: Path) -> None:
    lora = LoRAConfig(targets=("embed_tokens", "q_proj"))
    asked = run_of(small_model).model_copy(update={"method": "auto", "lora": lora})
    short = limit_over(lora_peak(asked, "keep") - 1_000_000)
    chosen, _ = choose(asked.model_copy(update={"memory": short}))
    assert (chosen.method, chosen.model.embeddings) == ("qlora", "keep")


def test_a_tokenizer_may_know_more_tokens_than_its_model(tiny_llama: Path, tmp_path: Path) -> None:
    """So it is for the small model by which the memory of the framework is measured."""
    shutil.copytree(tiny_llama, tmp_path, dirs_exist_ok=True)
    vocabulary = {f"unused{i}": i for i in range(5000)}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary |= {character: 5000 + i for i, character in enumerate([*alphabet, "</s>"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokenizer.save_pretrained(tmp_path)
    assert run_trial(run_of(tmp_path), 8, steps=2).resident_bytes > 100_000_000


def test_copies_of_a_tokenizer_share_the_measurement(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name and content of the files, wherever they lie."""
    measured: list[str] = []

    def kept(_: str, key: str, make: object, read: object) -> Measured:
        measured.append(key)
        return NOTHING

    monkeypatch.setattr("graftlm.planning.baseline_memory.kept", kept)
    for folder in ("copy", "other"):
        shutil.copytree(tiny_llama, tmp_path / folder)
    with (tmp_path / "other" / "tokenizer.json").open("a") as file:
        file.write("\n")
    for folder in (tiny_llama, tmp_path / "copy", tmp_path / "other", None):
        assert framework_memory(folder) == NOTHING
    assert measured[0] == measured[1]
    assert len(set(measured)) == 3


def test_what_only_a_plan_can_decide_is_refused_before_any_work(
    tiny_llama: Path, tmp_path: Path
) -> None:
    config = run_of(tiny_llama)
    data = config.data.model_copy(update={"train": "rows.jsonl"})
    train = config.train.model_copy(update={"gradient_checkpointing": "auto"})
    left_open = config.model_copy(
        update={"method": "auto", "train": train, "data": data, "out": str(tmp_path / "run")}
    )
    with pytest.raises(ConfigError) as refused:
        run(left_open)
    assert [problem.split()[0] for problem in refused.value.problems] == [
        "method",
        "train.gradient_checkpointing",
    ]
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_keeps_what_the_plan_decided(tiny_llama: Path, tmp_path: Path) -> None:
    begun = run_of(tiny_llama).model_copy(update={"method": "qlora", "out": str(tmp_path)})
    train = begun.train.model_copy(
        update={"gradient_checkpointing": True, "micro_batch_tokens": 64}
    )
    held = begun.model.model_copy(update={"embeddings": "int8"})
    begun = begun.model_copy(update={"train": train, "model": held})
    train = begun.train.model_copy(
        update={"gradient_checkpointing": "auto", "micro_batch_tokens": None}
    )
    open_ = begun.model.model_copy(update={"embeddings": "auto"})
    asked = begun.model_copy(update={"method": "auto", "train": train, "model": open_})
    assert continued(asked, begun) == begun
    shorter = asked.data.model_copy(update={"max_length": 32})
    assert continued(asked.model_copy(update={"data": shorter}), begun) == begun
    by_hand = begun.model_copy(update={"train": train, "model": open_})
    assert continued(by_hand, begun) == begun
    by_hand = by_hand.model_copy(update={"data": shorter})
    assert continued(by_hand, begun) == begun.model_copy(update={"data": shorter})
    kept = begun.model.model_copy(update={"embeddings": "keep"})
    said = begun.model_copy(update={"method": "lora", "model": kept})
    assert continued(said, begun) == said  # what was said stays, for the run to refuse


@pytest.mark.parametrize(("tied", "held"), [(True, 2), (False, 3)])
def test_table_and_head_are_counted_while_they_become_codes(tied: bool, held: int) -> None:
    architecture = LlamaConfig(
        vocab_size=50_000, hidden_size=64, intermediate_size=128, tie_word_embeddings=tied
    )
    config = RunConfig(model=ModelConfig(embeddings="int8", dtype="bfloat16"))
    assert Source(architecture).loading_bytes(config) == held * 50_000 * 64
