"""From settings to a trained adapter: load, adapt, read the data, fit.

`run` is what the command line calls; `train` is the same for a model already in hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from graftlm.config import DataConfig, LoRAConfig, ModelConfig, RunConfig, TrainConfig
from graftlm.data import audit
from graftlm.data.batch import Example
from graftlm.data.examples import load_examples
from graftlm.errors import ConfigError, TargetError
from graftlm.layers import NF4Linear
from graftlm.lora import add_lora, count_parameters, lora_modules
from graftlm.models import load_model, resolve
from graftlm.train.loop import Run, RunResult, fit
from graftlm.train.run_folder import open_run, write_provenance

__all__ = ["run", "train"]


def run(config: RunConfig, *, resume: bool = False, progress: bool = True) -> RunResult:
    """Do one whole training run as ``config`` describes it, in the folder ``config.out``.

    Raises:
        ConfigError: a required setting is missing.
        GraftLMError: whatever stops the model, the data or the training; see `graftlm.errors`.
    """
    problems = [
        f"{name} is not set: {what}"
        for name, value, what in (
            ("model.name", config.model.name, "which model? Pass --model, e.g. gemma-3-270m"),
            ("data.train", config.data.train, "which rows? Pass --data FILE"),
        )
        if not value
    ]
    if problems:
        raise ConfigError(problems)
    base_path = resolve(config.model.name).path
    open_run(Path(config.out), config, resume)
    model, tokenizer = load_model(
        config.model.name,
        quantize="nf4" if config.method == "qlora" else None,
        dtype="float32" if config.method == "full" else config.model.dtype,
        block_size=config.model.block_size,
        double_quant=config.model.double_quant,
        trust_remote_code=config.model.trust_remote_code,
    )
    # Seeded before the adapters are drawn, so that a seed names one run.
    torch.manual_seed(config.train.seed)
    if config.method == "full":
        model.requires_grad_(True)
    else:
        add_lora(model, config.lora)
    write_provenance(Path(config.out), config, base_path)
    return _fit(model, tokenizer, config, config.data.train, config.data.eval, resume, progress)


def train(
    model: nn.Module,
    tokenizer: Any,
    data: str | Path | Sequence[Example],
    config: TrainConfig | None = None,
    *,
    out: str | Path,
    eval_data: str | Path | Sequence[Example] | None = None,
    data_config: DataConfig | None = None,
    resume: bool = False,
    progress: bool = True,
) -> RunResult:
    """Train a model in hand: its adapters if it has any, else whatever requires a gradient.

    Args:
        model: from `graftlm.load_model`, with `graftlm.add_lora` applied unless all weights train.
        tokenizer: the model's.
        data: a file of rows, or tokenised examples.
        config: how to train.
        out: the run folder.
        eval_data: rows to measure on.
        data_config: how rows become tokens.
        resume: go on with the run in ``out``.
        progress: draw the progress line on stderr.
    """
    settings = RunConfig(
        method=_method_of(model),
        out=str(out),
        model=ModelConfig(name=getattr(model.config, "_name_or_path", "")),
        data=_named(data_config or DataConfig(), data, eval_data),
        lora=_lora_config_of(model),
        train=config or TrainConfig(),
    )
    open_run(Path(out), settings, resume)
    write_provenance(Path(out), settings, None)
    torch.manual_seed(settings.train.seed)
    return _fit(model, tokenizer, settings, data, eval_data, resume, progress)


def _fit(
    model: nn.Module,
    tokenizer: Any,
    config: RunConfig,
    data: str | Path | Sequence[Example],
    eval_data: str | Path | Sequence[Example] | None,
    resume: bool,
    progress: bool,
) -> RunResult:
    examples = _examples(data, tokenizer, config.data)
    audit.require_trainable(examples)
    if config.train.gradient_checkpointing:
        # Non-reentrant: works although the first layer's input needs no gradient.
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    task = Run(
        model=model,
        tokenizer=tokenizer,
        examples=examples,
        eval_examples=_examples(eval_data, tokenizer, config.data) if eval_data else [],
        config=config,
        out=Path(config.out),
        total_parameters=count_parameters(model).total,
    )
    return fit(task, resume=resume, progress=progress)


def _examples(
    data: str | Path | Sequence[Example], tokenizer: Any, config: DataConfig
) -> Sequence[Example]:
    if isinstance(data, str | Path):
        return load_examples(data, tokenizer, config)
    return data


def _method_of(model: nn.Module) -> Literal["qlora", "lora", "full"]:
    adapters = lora_modules(model)
    if not adapters:
        if not any(p.requires_grad for p in model.parameters()):
            raise TargetError("nothing to train: call graftlm.add_lora(model, …) first")
        return "full"
    on_nf4 = any(isinstance(module.base, NF4Linear) for module in adapters.values())
    return "qlora" if on_nf4 else "lora"


def _lora_config_of(model: nn.Module) -> LoRAConfig:
    return getattr(model, "graftlm_lora_config", LoRAConfig())


def _named(config: DataConfig, data: Any, eval_data: Any) -> DataConfig:
    """The data settings with the files' names in them, for the record."""
    names = {
        key: str(value)
        for key, value in (("train", data), ("eval", eval_data))
        if isinstance(value, str | Path)
    }
    return config.model_copy(update=names)


def result_json(result: RunResult) -> dict[str, Any]:
    """`summary.json` as a plain tree."""
    return dataclasses.asdict(result)
