"""From settings to a trained adapter: load, adapt, read the data, fit.

`run` is what the command line calls; `train` is the same for a model already in hand.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from transformers import PreTrainedModel

from graftlm.adapters import add_lora, count_parameters, lora_config, lora_modules
from graftlm.config import (
    DataConfig,
    LoRAConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    contradictions,
    left_open,
    settled,
)
from graftlm.data.audit import audit
from graftlm.data.batch import Example
from graftlm.data.examples import load_examples, split_to_train
from graftlm.data.folders import Purpose
from graftlm.data.pack import pack_examples
from graftlm.data.store import Examples
from graftlm.errors import ConfigError, TargetError
from graftlm.frozen.int8_rows import Int8Embedding
from graftlm.frozen.nf4.linear import NF4Linear
from graftlm.models import StoredTokenizer, load_tokenizer, load_weights, resolve
from graftlm.models.capabilities import require_packable
from graftlm.system import release_freed_memory, return_freed_memory
from graftlm.system.placement import placement_for
from graftlm.training.data_checks import (
    check_rows,
    model_config_in,
    record_of_rows,
    trained_tokenizer,
)
from graftlm.training.disk import require_space
from graftlm.training.loop import fit
from graftlm.training.recompute import recompute_activations
from graftlm.training.run import Run, RunResult
from graftlm.training.run_folder import begin_run, check_run

__all__ = ["adapted_model", "run", "train"]


def run(config: RunConfig, *, resume: bool = False, progress: bool = True) -> RunResult:
    """Do one whole training run as ``config`` describes it, in the folder ``config.out``.

    From then on the process gives freed memory back to the system, as the plan assumes
    (`graftlm.system.return_freed_memory`).

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
    problems += _undecided(config) + contradictions(config)
    if problems:
        raise ConfigError(problems)
    return_freed_memory()
    config = settled(config)
    base_path = resolve(config.model.name).path
    check_run(Path(config.out), config, resume)
    # The rows first: once they are tokens, the tokenizer need not be in memory beside the model.
    tokenizer = load_tokenizer(config.model.name, trust_remote_code=config.model.trust_remote_code)
    rows, held = _examples(tokenizer, config.data, config.data.train, config.data.eval)
    check_rows(rows, held, tokenizer, config.data, model_config_in(base_path), base_path)
    with StoredTokenizer(trained_tokenizer(tokenizer, rows, config.data)) as stored:
        del tokenizer
        release_freed_memory()
        task = _task(adapted_model(config), stored, config, rows, held)
        begin_run(task.out, config, base_path, record_of_rows(rows, config.data))
        return fit(task, resume=resume, progress=progress)


def _undecided(config: RunConfig) -> list[str]:
    """A problem for each setting that only a plan can decide."""
    return [
        f"{name} is auto: `graftlm train` decides it; in Python, and for graftlm compare, take the "
        "settings that graftlm.planning.choose returns, or say which"
        for name in left_open(config)
    ]


def adapted_model(config: RunConfig) -> PreTrainedModel:
    """The base model as ``config`` wants it held, with new adapters; the seed is set."""
    model = load_weights(
        config.model.name,
        quantize="nf4" if config.method == "qlora" else None,
        dtype="float32" if config.method == "full" else config.model.dtype,
        block_size=config.model.block_size,
        double_quant=config.model.double_quant,
        embeddings=config.model.embeddings_held,
        replacements=config.model.replacements,
        trust_remote_code=config.model.trust_remote_code,
    )
    # Seeded before the adapters are drawn, so that a seed names one run.
    placement_for("auto").seed(config.train.seed)
    if config.method == "full":
        model.requires_grad_(True)
    else:
        add_lora(model, config.lora)
    return model


def train(
    model: PreTrainedModel,
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
        model=_model_config_of(model),
        data=_named(data_config or DataConfig(), data, eval_data),
        lora=lora_config(model) if lora_modules(model) else LoRAConfig(),
        train=config or TrainConfig(),
    )
    if problems := _undecided(settings):
        raise ConfigError(problems)
    check_run(Path(out), settings, resume)
    rows, held = _examples(tokenizer, settings.data, data, eval_data)
    check_rows(rows, held, tokenizer, settings.data, model.config.to_dict())
    saved = trained_tokenizer(tokenizer, rows, settings.data)
    task = _task(model, saved, settings, rows, held)
    begin_run(task.out, settings, None, record_of_rows(rows, settings.data))
    task.placement.seed(settings.train.seed)
    return fit(task, resume=resume, progress=progress)


def _task(
    model: PreTrainedModel,
    tokenizer: Any,
    config: RunConfig,
    examples: Sequence[Example],
    eval_examples: Sequence[Example],
) -> Run:
    """The run, ready to start; refused where the disk has no room for what it writes."""
    if config.train.gradient_checkpointing:
        recompute_activations(model)
    task = Run(
        model=model,
        tokenizer=tokenizer,
        examples=_packed(model, examples, config.data),
        eval_examples=eval_examples,
        config=config,
        out=Path(config.out),
        total_parameters=count_parameters(model)[1],
    )
    require_space(task)
    return task


def _examples(
    tokenizer: Any, config: DataConfig, data: Any, eval_data: Any
) -> tuple[Sequence[Example], Sequence[Example]]:
    """What is trained on, and what is measured on."""
    examples = _read(data, tokenizer, config, "train")
    held: Sequence[Example] = []
    if eval_data is not None:
        held = _read(eval_data, tokenizer, config, "eval")
    if eval_data is None and config.eval_fraction and isinstance(examples, Examples):
        examples, held = split_to_train(examples, config.eval_fraction)
    audit.require_trainable(examples)
    return examples, held


def _packed(
    model: PreTrainedModel, examples: Sequence[Example], config: DataConfig
) -> Sequence[Example]:
    """The examples, several in a sequence where the settings say so and the model can tell."""
    if not config.packing:
        return examples
    require_packable(model)
    return pack_examples(examples, config.max_length)


def _read(source: Any, tokenizer: Any, config: DataConfig, purpose: Purpose) -> Sequence[Example]:
    """Tokenised rows of a source, or examples as they were given."""
    if not isinstance(source, str | Path | Mapping):
        audit.require_trainable(source)
        return cast("Sequence[Example]", source)
    examples = load_examples(source, tokenizer, config, purpose=purpose)
    for line in examples.report.said(str(source), config.max_length):
        print(line, file=sys.stderr)
    return examples


def _method_of(model: PreTrainedModel) -> Literal["qlora", "lora", "full"]:
    adapters = lora_modules(model)
    if not adapters:
        if not any(p.requires_grad for p in model.parameters()):
            raise TargetError("nothing to train: call graftlm.add_lora(model, …) first")
        if any(isinstance(module, Int8Embedding) for module in model.modules()):
            raise TargetError(
                "embeddings in 8 bits are frozen: load the model without embeddings=int8"
            )
        return "full"
    on_nf4 = any(isinstance(module.base, NF4Linear) for module in adapters.values())
    return "qlora" if on_nf4 else "lora"


def _model_config_of(model: PreTrainedModel) -> ModelConfig:
    """How a model in hand is held, for the record: merging onto 4 bits reads it again."""
    config = ModelConfig(
        name=getattr(model.config, "_name_or_path", ""),
        dtype=str(model.dtype).removeprefix("torch."),
        embeddings="keep",
    )
    held: dict[str, Any] = {}
    for module in model.modules():
        if isinstance(module, NF4Linear):
            stored = module.weight4
            held |= {"block_size": stored.block_size, "double_quant": stored.double_quantized}
        elif isinstance(module, Int8Embedding):
            # `model.dtype` is that of the first parameter, and without a table this is an adapter.
            held |= {"embeddings": "int8", "dtype": str(module.dtype).removeprefix("torch.")}
    return config.model_copy(update=held)


def _named(config: DataConfig, data: Any, eval_data: Any) -> DataConfig:
    """The data settings with the files' names in them, for the record."""
    names = {
        key: str(value)
        for key, value in (("train", data), ("eval", eval_data))
        if isinstance(value, str | Path)
    }
    return config.model_copy(update=names)
