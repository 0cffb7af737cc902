"""Every setting of graftlm, declared once.

The YAML file, the command-line flags, ``--set section.name=value`` and ``docs/settings.md`` are all
generated from these models. They are frozen: a run's settings never change under it.
"""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from graftlm.errors import ConfigError, near_matches

__all__ = [
    "DataConfig",
    "Embeddings",
    "LoRAConfig",
    "ModelConfig",
    "RunConfig",
    "TrainConfig",
    "load_run_config",
    "parse_override",
]

Embeddings = Literal["keep", "int8"]
Method = Literal["qlora", "lora", "full", "auto"]
Replacement = Literal["norms", "gated_units", "output_layer", "attention"]


class Settings(pydantic.BaseModel):
    """Base of all settings: immutable, unknown names refused."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelConfig(Settings):
    """Which base model, and how it is held in memory."""

    name: str = ""
    """A folder, a Hub id, a `.gguf` file, or a built-in name such as `gemma-3-270m`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the unquantised weights; `auto` keeps the checkpoint's."""
    block_size: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096] = 64
    """NF4: weights that share one scale."""
    double_quant: bool = True
    """NF4: store the scales themselves in 8 bits."""
    embeddings: Literal["auto", "keep", "int8"] = "auto"
    """`int8` stores the embedding table and the output head in 8 bits, a scale a row: half of what
    16 bits take. They must be frozen: not with `full`, and no adapters on them. `auto` keeps their
    type, unless a plan (`memory`, or another `auto`) finds that 8 bits make the run fit."""
    replacements: tuple[Replacement, ...] = typing.get_args(Replacement)
    """Modules of transformers that quicker ones stand for, where these compute the same; `[]` keeps
    the model as transformers has it."""
    trust_remote_code: bool = False
    """Run Python code that the model folder brings along. Only for sources you trust."""

    @property
    def embeddings_held(self) -> Embeddings:
        """`auto` comes to ``keep`` where no plan has decided."""
        return "int8" if self.embeddings == "int8" else "keep"


class DataConfig(Settings):
    """Which rows to learn from, and how they become tokens."""

    train: str | dict[str, float] = ""
    """The rows to train on: a file, folder, glob, `-`, Hub data set, or `{source: weight, ...}`."""
    eval: str | None = None
    """The rows to measure on; never trained on."""
    eval_fraction: float = pydantic.Field(0.0, ge=0, lt=1)
    """Without `eval`: hold this share of `train` out, chosen by content, the same for ever."""
    columns: dict[str, str] = {}
    """Column names: `{prompt: question, completion: answer}` reads `question` as the prompt."""
    ignore: tuple[str, ...] = ()
    """Columns to leave out knowingly, where graftlm would refuse rows because such a column
    changes what they mean: `[label, weight]`."""
    format: Literal["plain", "chat"] = "plain"
    """Rows of a prompt and a completion: `plain` text, or a question and an answer as turns of
    the `chat` template. The adapter is later asked in the same form."""
    separator: str = "\n"
    """What stands between prompt and completion in plain text; `""` for nothing."""
    max_length: int = pydantic.Field(512, ge=2)
    """Longest row in tokens."""
    truncation: Literal["drop", "left", "right", "split"] = "drop"
    """A longer row is dropped, cut from the left or the right, or split into windows."""
    loss_on: Literal["completion", "last", "all"] = "completion"
    """What is learned: every answer, only the last answer of a chat, or every token."""
    chat_template: str = "auto"
    """`auto` (the tokenizer's own, else by family), or a built-in: `chatml`, `plain`, ..."""
    packing: bool = False
    """Put several rows into one sequence of `max_length`; each attends only to itself."""
    group_by_length: bool = True
    """Batch rows of similar length: less padding where rows are padded, as on a GPU."""
    workers: int = pydantic.Field(0, ge=0)
    """Processes that prepare large data, each with its own tokenizer; 0: this one, on all cores."""


class LoRAConfig(Settings):
    """Where the adapters go and how large they are: `y = W x + (alpha / rank) B A x`."""

    rank: int = pydantic.Field(16, ge=1)
    """Inner dimension of the two thin matrices."""
    alpha: float = pydantic.Field(32.0, gt=0)
    """The update is scaled by `alpha / rank`."""
    dropout: float = pydantic.Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input while training."""
    targets: str | tuple[str, ...] = "all-linear"
    """`all-linear`, a list of module names, or a regular expression on full module names."""
    exclude: tuple[str, ...] = ()
    """Module names never adapted, even where `targets` matches."""
    use_rslora: bool = False
    """Scale by `alpha / sqrt(rank)` instead, which keeps large ranks stable (arXiv 2312.03732)."""
    rank_pattern: dict[str, int] = {}
    """Another rank for modules whose name matches the key."""
    alpha_pattern: dict[str, float] = {}
    """Another alpha for modules whose name matches the key."""
    variant: str = "lora"
    """The kind of adapter: `lora`, or another that was registered (`graftlm.extend`)."""


class TrainConfig(Settings):
    """How the adapters (or, with `full`, all weights) are trained."""

    steps: int | None = pydantic.Field(None, ge=1)
    """Optimiser steps; `None` trains for `epochs`."""
    epochs: float = pydantic.Field(1.0, gt=0)
    """Passes over the data when `steps` is not set."""
    batch_size: int = pydantic.Field(8, ge=1)
    """Rows in one batch."""
    gradient_accumulation_steps: int = pydantic.Field(1, ge=1)
    """Batches whose gradients are added before one optimiser step."""
    micro_batch_tokens: int | None = pydantic.Field(None, ge=1)
    """A batch is computed in parts of at most this many positions, a row at least: less memory,
    the same update. `None`: 512 on a CPU, where more are no faster, and whole batches on a GPU."""
    learning_rate: float | None = pydantic.Field(None, gt=0)
    """Peak learning rate; `None` takes 2e-4 for LoRA and QLoRA, 2e-5 for full fine-tuning."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_ratio: float = pydantic.Field(0.03, ge=0, le=1)
    """Share of the steps in which the learning rate rises from zero."""
    weight_decay: float = pydantic.Field(0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    adam_beta1: float = pydantic.Field(0.9, ge=0, lt=1)
    """AdamW: decay of the first moment."""
    adam_beta2: float = pydantic.Field(0.999, ge=0, lt=1)
    """AdamW: decay of the second moment."""
    adam_epsilon: float = pydantic.Field(1e-8, gt=0)
    """AdamW: added to the denominator."""
    max_grad_norm: float = pydantic.Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    loss_tolerance: float = pydantic.Field(1e-6, ge=0, lt=1)
    """Probabilities up to this may be left out of the output layer's gradient; 0 is exact."""
    seed: int = pydantic.Field(0, ge=0)
    """Seed of adapters, data order and dropout."""
    eval_steps: int | None = pydantic.Field(None, ge=1)
    """Measure the held-out loss every so many steps; `None` measures before and after only."""
    save_steps: int | None = pydantic.Field(None, ge=1)
    """Write a checkpoint every so many steps; `None` writes one when stopped and at the end."""
    keep_checkpoints: int = pydantic.Field(2, ge=1)
    """Older checkpoints are deleted; the best one is kept besides."""
    early_stopping_patience: int | None = pydantic.Field(None, ge=1)
    """Stop after so many evaluations without a better held-out loss."""
    gradient_checkpointing: bool | Literal["auto"] = False
    """Recompute each layer's activations in the backward pass: less memory, more time. `auto`:
    where the run would not fit in `memory` (or what is free) without."""
    tensorboard: bool = False
    """Also write TensorBoard event files into the run folder."""


class RunConfig(Settings):
    """One training run, complete: what `config.yaml` in a run folder holds."""

    method: Method = "qlora"
    """`qlora`: adapters over a 4-bit base; `lora`: over a 16/32-bit base; `full`: all weights;
    `auto`: LoRA where it fits in memory, else QLoRA, as `graftlm plan` says."""
    memory: str | None = None
    """Start nothing that needs more than this, such as `2GB`; what is `auto` is decided to fit."""
    out: str = "runs/latest"
    """The run folder."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    lora: LoRAConfig = LoRAConfig()
    train: TrainConfig = TrainConfig()


def left_open(config: RunConfig) -> list[str]:
    """The settings that are ``auto``: `graftlm.planning.choose` decides them."""
    values = {
        "method": config.method,
        "train.gradient_checkpointing": config.train.gradient_checkpointing,
    }
    return [name for name, value in values.items() if value == "auto"]


def with_method(config: RunConfig, method: Method) -> RunConfig:
    """``config`` by another method; its embeddings are `settled`."""
    return settled(config.model_copy(update={"method": method}))


def settled(config: RunConfig) -> RunConfig:
    """``config`` with embeddings that are still ``auto`` kept, as no plan has put them in 8 bits.

    Full fine-tuning trains them, so it keeps them whatever was said.
    """
    held = "keep" if config.method == "full" else config.model.embeddings_held
    model = config.model.model_copy(update={"embeddings": held})
    return config.model_copy(update={"model": model})


def contradictions(config: RunConfig) -> list[str]:
    """A problem for each pair of settings that cannot be had together."""
    if config.method == "full" and config.model.embeddings == "int8":
        return ["method=full trains the embeddings, which model.embeddings=int8 freezes: use keep"]
    return []


def parse_override(text: str) -> tuple[list[str], Any]:
    """``"train.learning_rate=2e-4"`` → ``(["train", "learning_rate"], 2e-4)``; values are YAML."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"--set {text!r}: expected section.name=value, e.g. train.steps=100")
    try:
        return path.strip().split("."), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text!r}: the value is not valid YAML: {error}") from error


def load_run_config(
    path: str | Path | None = None,
    overrides: typing.Sequence[tuple[list[str], Any]] = (),
) -> RunConfig:
    """Read a YAML file (if any), apply overrides in order, and validate everything at once.

    Raises:
        ConfigError: listing every unknown name (with near matches) and every bad value.
    """
    tree: Any = {}
    if path is not None:
        try:
            tree = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the settings file {path}: {error}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is not valid YAML: {error}") from error
        if not isinstance(tree, dict):
            raise ConfigError(f"{path}: expected settings, found a {type(tree).__name__}")
    for keys, value in overrides:
        node = tree
        for depth, key in enumerate(keys[:-1]):
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{'.'.join(keys[: depth + 1])} is a value, not a section")
        node[keys[-1]] = value
    return validate(RunConfig, tree)


SettingsT = typing.TypeVar("SettingsT", bound=Settings)


def validate(model: type[SettingsT], tree: dict[str, Any]) -> SettingsT:
    """Build settings from a plain tree, or raise one `ConfigError` with all problems."""
    problems = _unknown_names(model, tree)
    try:
        settings = model.model_validate(tree)
    except pydantic.ValidationError as error:
        for item in error.errors():
            if item["type"] != "extra_forbidden":
                where = ".".join(str(part) for part in item["loc"])
                problems.append(f"{where}: {item['msg']}, got {item['input']!r}")
        raise ConfigError(problems) from None
    return settings


def _unknown_names(model: type[Settings], tree: Any, prefix: str = "") -> list[str]:
    if not isinstance(tree, dict):
        return []
    problems = []
    for key, value in tree.items():
        field = model.model_fields.get(str(key))
        if field is None:
            hint = _elsewhere(str(key)) or near_matches(str(key), model.model_fields)
            problems.append(f"unknown setting {prefix}{key}{hint}")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            problems += _unknown_names(field.annotation, value, f"{prefix}{key}.")
    return problems


def _elsewhere(key: str) -> str:
    """Point at the section that has a setting of this name, if one does."""
    homes = [
        f"{section}.{key}"
        for section, field in RunConfig.model_fields.items()
        if type(field.annotation) is type(Settings) and key in field.annotation.model_fields
    ]
    return near_matches(homes[0], homes) if homes else ""
