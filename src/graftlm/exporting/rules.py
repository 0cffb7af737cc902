"""The rules of the targets: which adapters a tool takes, asked before and after training.

    of the file     what adapter_config.json says: DoRA, biases, whole modules, …; also of adapters
                    that other tools made and graftlm itself does not load
    of the model    the base with the adapters attached, on the meta device: no weights are read

Before training the adapters come from the settings, afterwards from the file; the rules are the
same. Each target has its own in `ExportTarget.rules`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from graftlm.adapters import add_lora
from graftlm.adapters.adapter_folder import adapter_folder, base_of
from graftlm.adapters.peft_config import CONFIG_NAME
from graftlm.adapters.peft_format import load_adapter
from graftlm.adapters.weights_read_directly import say_left_out
from graftlm.config import RunConfig
from graftlm.errors import ConfigError, GraftLMError
from graftlm.exporting.left_out import left_out_on_disk
from graftlm.exporting.target import target_named, targets
from graftlm.models import resolve
from graftlm.models.load import empty_model, load_config

__all__ = [
    "broken_rules",
    "effect_rules",
    "empty_base",
    "file_rules",
    "require_exportable",
    "with_adapter",
]

PLAIN_ONLY = {"gguf-adapter": "llama.cpp", "mlx": "mlx-lm", "vllm": "vLLM"}
"""The targets that take an adapter as it is, and the tool that reads it."""


def broken_rules(
    adapter: Path, base: str | None = None, names: Iterable[str] = ()
) -> dict[str, list[str]]:
    """For each target, every rule that an adapter breaks; writes nothing.

    Args:
        adapter: a PEFT adapter folder, or a run folder.
        base: the base model; by default the one the adapter names.
        names: of targets; by default all.
    """
    name = base or base_of(adapter)
    found = {}
    for target in names or targets():
        problems = [*file_rules(adapter, target), *target_named(target).check(adapter, name)]
        found[target] = list(dict.fromkeys(problems))
    return found


def require_exportable(config: RunConfig, model: nn.Module | None = None) -> None:
    """Refuse a run whose result could not be exported to the forms in ``train.export_to``.

    Args:
        config: the settings of the run.
        model: the model with its adapters; by default an empty one is made from the settings.

    Raises:
        ConfigError: every rule that would be broken is listed, or a form is unknown.
    """
    wanted = [(name, target_named(name)) for name in config.train.export_to]
    if not wanted:
        return
    if config.method == "full":
        raise ConfigError("train.export_to: exports are made from adapters, and method is full")
    if model is None:
        model = empty_base(config.model.name)
        add_lora(model, config.lora)
    problems = [
        f"train.export_to={name}: {problem}"
        for name, target in wanted
        for problem in [*_of_settings(config, name), *target.rules(model)]
    ]
    if problems:
        raise ConfigError(problems)


def file_rules(adapter: Path, target: str) -> list[str]:
    """The rules that the entries of adapter_config.json break, for a tool that reads adapters."""
    tool = PLAIN_ONLY.get(target)
    if tool is None:
        return []
    try:
        raw = json.loads((adapter_folder(adapter) / CONFIG_NAME).read_text(encoding="utf-8"))
    except ValueError:
        return []  # reading the adapter says why
    rules: list[tuple[str, Any]] = [
        ("has no DoRA (use_dora)", raw.get("use_dora")),
        (f"has no trained biases (bias={raw.get('bias')})", raw.get("bias", "none") != "none"),
        (
            f"has no fully trained modules (modules_to_save={raw.get('modules_to_save')})",
            raw.get("modules_to_save"),
        ),
        (
            "has no rows of new tokens that train alone (trainable_token_indices)",
            raw.get("trainable_token_indices"),
        ),
        ("has no bias of the update (lora_bias)", raw.get("lora_bias")),
        ("has no adapters on single parameters (target_parameters)", raw.get("target_parameters")),
        (f"reads LoRA only, not {raw.get('peft_type')}", raw.get("peft_type") != "LORA"),
    ]
    return [f"{tool} {words}" for words, broken in rules if broken]


def effect_rules(model: Any, adapter: Path, base: str, target: str) -> list[str]:
    """The layers whose update has no effect here, and would have one in the target's tool.

    Args:
        model: the empty base with the adapter.
        adapter: the adapter's folder, or a run folder.
        base: the name of the base.
        target: one of `PLAIN_ONLY`.
    """
    names, failure = left_out_on_disk(model, adapter, resolve(base).path)
    say_left_out([], failure)
    if not names:
        return []
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [
        f"{names[0]}{more}: the model reads the weight itself, so that the update has no effect "
        f"here, and {PLAIN_ONLY[target]} would apply it. Merge instead"
    ]


def _of_settings(config: RunConfig, target: str) -> list[str]:
    if config.lora.merge_aware and target not in ("peft", "transformers"):
        return ["a run that trains through its merge is exact only as `graftlm merge` writes it"]
    tool, lora = PLAIN_ONLY.get(target), config.lora
    beside = {
        "lora.modules_to_save": bool(lora.modules_to_save),
        "lora.trainable_token_indices": bool(lora.trainable_token_indices),
        "data.new_tokens": bool(config.data.new_tokens),
        f"lora.bias={lora.bias}": lora.bias != "none",
        "lora.lora_bias=true": lora.lora_bias,
    }
    return [f"{tool} has no {name}" for name, is_set in beside.items() if is_set and tool]


def empty_base(base: str) -> Any:
    """The base model on the meta device; no weights are read."""
    config = load_config(resolve(base).path)
    config.__dict__.pop("quantization_config", None)
    return empty_model(config)


def with_adapter(adapter: Path, base: str) -> tuple[Any, list[str]]:
    """The empty base with the adapter's tensors, or the reason why they do not fit."""
    model = empty_base(base)
    try:
        load_adapter(model, adapter)
    except GraftLMError as error:
        return model, [str(error)]
    return model, []
