"""The command of a plan, parsed as the command line parses it, gives the settings of the option."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from graftlm.config import (
    DataConfig,
    LoRAConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    load_run_config,
    parse_override,
)
from graftlm.planning.option import Option
from graftlm.planning.plan import command

PATHS = {"--model": "model.name", "--data": "data.train", "--method": "method"}


def option_of(**settings: Any) -> Option:
    return Option(
        **(
            {
                "method": "lora",
                "gradient_checkpointing": True,
                "micro_batch_tokens": 256,
                "max_length": 512,
                "embeddings": "int8",
            }
            | settings
        ),
        rows=1,
        length=256,
        predicted_peak_bytes=1,
        components={},
        peak_at="loading",
        trainable_parameters=1,
        seconds_per_step=None,
        seconds_uncertainty=None,
        fits=True,
    )


def parsed(text: str) -> RunConfig:
    words = shlex.split(text)
    assert words[:2] == ["graftlm", "train"]
    given = []
    for flag, word in zip(words[2::2], words[3::2], strict=True):
        given.append(parse_override(word) if flag == "--set" else (PATHS[flag].split("."), word))
    return load_run_config(None, given)


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(model=ModelConfig(name="m"), data=DataConfig(train="rows.jsonl")),
        RunConfig(
            memory="8GB",
            out="runs/my run",
            model=ModelConfig(
                name="a model",
                dtype="bfloat16",
                weight_format="int8",
                replacements=(),
                trust_remote_code=True,
            ),
            data=DataConfig(
                train={"a: b.jsonl": 2.0, "😀.jsonl": 1e-5},
                eval_fraction=0.25,
                columns={"yes": "1:30"},
                ignore=("null", "x"),
                separator="\n\u2028\x7f'\"\\",
                chat_template="yes",
                packing=True,
                truncation="split",
            ),
            lora=LoRAConfig(
                rank=4,
                alpha=8.5,
                dropout=0.1,
                targets=r".*\.(q|v)_proj",
                exclude=("lm_head",),
                rank_pattern={r"^.*\.0\.": 2},
                variant="1e5",
            ),
            train=TrainConfig(batch_size=2, learning_rate=1e-5, eval_steps=3, tracking="trackio"),
        ),
        RunConfig(
            model=ModelConfig(name="m"),
            data=DataConfig(train="r", separator=""),
            lora=LoRAConfig(targets=("q_proj", "#")),
        ),
    ],
    ids=["default", "much", "little"],
)
@pytest.mark.parametrize("changes", [{}, {"method": "qlora", "embeddings": "keep"}], ids=str)
def test_the_parsed_command_gives_the_settings_of_the_option(
    config: RunConfig, changes: dict[str, Any]
) -> None:
    option = option_of(**changes)
    assert parsed(command(config, option)) == option.applied(config)


def test_what_is_the_default_is_not_said() -> None:
    config = RunConfig(model=ModelConfig(name="m"))
    option = option_of(gradient_checkpointing=False, micro_batch_tokens=None)
    said = "graftlm train --model m --data DATA --method lora --set model.embeddings=int8"
    assert command(config, option) == said
