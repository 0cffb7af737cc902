"""The settings of a call: a `RunConfig`, or a model's name, and what the call says besides."""

from __future__ import annotations

from typing import Any

from graftlm.api.rows import Rows, named_rows
from graftlm.config import RunConfig, validate

__all__ = ["settings_of"]


def settings_of(
    model: str | RunConfig,
    data: Rows | None = None,
    eval_data: Rows | None = None,
    **values: Any,
) -> RunConfig:
    """The request; what is ``None`` is left as it is.

    Args:
        model: the name of a model, or settings.
        data: the rows to train on.
        eval_data: the rows to measure on.
        **values: other settings, ``section__name=value``.

    Raises:
        ConfigError: a value is wrong.
    """
    asked = model if isinstance(model, RunConfig) else RunConfig()
    tree = asked.model_dump(exclude_unset=True)
    if not isinstance(model, RunConfig):
        tree.setdefault("model", {})["name"] = str(model)
    if data is not None:
        tree.setdefault("data", {})["train"] = named_rows(data)
    if eval_data is not None:
        tree.setdefault("data", {})["eval"] = named_rows(eval_data, "eval")
    for path, value in values.items():
        section, _, name = path.rpartition("__")
        if value is not None:
            (tree.setdefault(section, {}) if section else tree)[name] = value
    return validate(RunConfig, tree)
