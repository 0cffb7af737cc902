"""Turns a plain tree into settings, or raises one error that names all problems."""

from __future__ import annotations

import types
import typing
from typing import Any

import pydantic

from graftlm.config.settings import RunConfig
from graftlm.config.values import Settings
from graftlm.errors import ConfigError, near_matches

__all__ = ["SECTIONS", "shown", "validate"]

SettingsT = typing.TypeVar("SettingsT", bound=Settings)
MOST_PROBLEMS = 10
USUAL_NAMES = {
    "accumulation": "train.gradient_accumulation_steps",
    "bs": "train.batch_size",
    "ctx": "data.max_length",
    "cutoff_len": "data.max_length",
    "dataset": "data.train",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lr": "train.learning_rate",
    "lr_scheduler_type": "train.schedule",
    "max_seq_length": "data.max_length",
    "max_steps": "train.steps",
    "model_name_or_path": "model.name",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "output_dir": "out",
    "per_device_train_batch_size": "train.batch_size",
    "r": "lora.rank",
    "target_modules": "lora.targets",
    "wd": "train.weight_decay",
}
"""Names of our settings in other tools, and common abbreviations."""
SPLITS = [[what, "parallel"] for what in ("context", "sequence", "tensor", "pipeline")]
SPLITS_SHORT = ("cp", "sp", "tp", "pp")
NOT_SPLIT = (
    "graftlm splits the rows of a batch over devices (ddp), and frozen weights (fsdp), but neither "
    "a row nor a product. A row has to fit on one device: set train.gradient_checkpointing=true, "
    "or lower data.max_length"
)
"""The answer to settings that would split a row or a layer over devices."""


def validate(model: type[SettingsT], tree: dict[str, Any]) -> SettingsT:
    """Build settings from a plain tree.

    Raises:
        ConfigError: the message lists all problems, or the first few of very many.
    """
    tree = _named_as_now(tree)
    problems = _unknown_names(model, tree)
    try:
        settings = model.model_validate(tree)
    except pydantic.ValidationError as error:
        problems += _bad_values(error)
        more = len(problems) - MOST_PROBLEMS
        rest = [f"... and {more} more"] if more > 0 else []
        raise ConfigError([*problems[:MOST_PROBLEMS], *rest]) from None
    return settings


def _named_as_now(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with a setting of earlier run folders under its name of today."""
    train = tree.get("train")
    if not isinstance(train, dict) or not isinstance(train.get("tensorboard"), bool):
        return tree
    rest = {name: value for name, value in train.items() if name != "tensorboard"}
    if train["tensorboard"]:
        rest.setdefault("tracking", "tensorboard")
    return {**tree, "train": rest}


def shown(value: Any, limit: int = 80) -> str:
    """``value`` as text for a message: of bounded length, and printable anywhere."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = f"a {type(value).__name__} too long to print"
    text = text.encode("utf-8", "backslashreplace").decode()
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= limit else f"{text[:limit]}…"


def _bad_values(error: pydantic.ValidationError) -> list[str]:
    """A line for each setting, with all of its permitted values."""
    said: dict[str, list[str]] = {}
    given: dict[str, Any] = {}
    for item in error.errors(include_url=False, include_context=False):
        if item["type"] != "extra_forbidden":
            where = _named(item["loc"])
            said.setdefault(where, []).append(_in_words(item))
            given[where] = item["input"]
    return [
        f"{shown(where)}: {' or '.join(dict.fromkeys(texts))}"
        + ("" if texts == ["is missing"] else f", got {_quoted(given[where])}")
        + (f". {NOT_SPLIT}" if where == "distributed" and _names_a_split(str(given[where])) else "")
        for where, texts in said.items()
    ]


def _in_words(item: Any) -> str:
    text = "is missing" if item["type"] == "missing" else str(item["msg"])
    return text.removeprefix("Value error, ")


def _quoted(value: Any) -> str:
    return f"'{shown(value)}'" if isinstance(value, str) else shown(value)


def _named(location: tuple[int | str, ...]) -> str:
    """The setting's name, without the member of a union that pydantic appends."""
    parts = [str(part) for part in location]
    depth = 2 if parts and parts[0] in SECTIONS else 1
    kinds = ("str", "int", "bool", "float", "[key]")
    rest = [p for p in parts[depth:] if p not in kinds and "[" not in p and "-" not in p]
    return ".".join(parts[:depth] + rest)


def _sections() -> dict[str, type[Settings]]:
    return {
        name: field.annotation
        for name, field in RunConfig.model_fields.items()
        if isinstance(field.annotation, type)
        and not isinstance(field.annotation, types.GenericAlias)
        and issubclass(field.annotation, Settings)
    }


SECTIONS = _sections()


def _unknown_names(model: type[Settings], tree: Any, prefix: str = "") -> list[str]:
    if not isinstance(tree, dict):
        return []
    problems = []
    for key, value in tree.items():
        field = model.model_fields.get(str(key))
        if field is None:
            problems.append(f"unknown setting {shown(f'{prefix}{key}')}{_hint(str(key), model)}")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            problems += _unknown_names(field.annotation, value, f"{prefix}{key}.")
        if len(problems) > 100:  # this file does not contain settings
            break
    return problems


def _names_a_split(name: str) -> bool:
    """Whether this names a way to split a row or a layer over devices."""
    words = name.lower().replace("-", "_").split("_")
    return words[0] in SPLITS_SHORT or words[:2] in SPLITS


def _hint(key: str, model: type[Settings]) -> str:
    """The name that was probably meant: of another tool, of another section, or a similar one."""
    if _names_a_split(key):
        return f": {NOT_SPLIT}"
    if key.lower() in USUAL_NAMES:
        return f"; did you mean {USUAL_NAMES[key.lower()]!r}?"
    homes = [f"{name}.{key}" for name, part in SECTIONS.items() if key in part.model_fields]
    if homes:
        return f"; did you mean {homes[0]!r}?"
    return near_matches(key[:100], model.model_fields)
