"""The model card: README.md in each folder that is written, as the Hub shows it.

It says where a model comes from (its base, the hashes of weights and data), how it was trained,
what was measured, how to open it, and whose licence holds. What is not recorded is left out; names
of folders on the machine of the training do not appear, nor does the time it took: the card of a
resumed run is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from graftlm.adapters.adapter_folder import run_folder_of
from graftlm.config import RunConfig, recorded_config
from graftlm.config.records import object_in, read_record
from graftlm.files import atomic_write
from graftlm.models import builtin
from graftlm.models.source import HUB_ID, without_revision

__all__ = ["CARD", "FORMS", "card", "card_of_adapter", "write_card"]

CARD = "README.md"

FORMS: dict[str, tuple[str, str, str]] = {
    "adapter": ("peft", "a LoRA adapter", 'PeftModel.from_pretrained(base_model, "FOLDER")'),
    "merged": (
        "transformers",
        "a whole model, the adapter merged into its base",
        'AutoModelForCausalLM.from_pretrained("FOLDER")',
    ),
    "full": (
        "transformers",
        "a whole model, all weights trained",
        'AutoModelForCausalLM.from_pretrained("FOLDER")',
    ),
    "mlx": ("mlx", "a LoRA adapter for mlx-lm", "mlx_lm.generate --adapter-path FOLDER --model …"),
    "ollama": (
        "gguf",
        "a GGUF file and a Modelfile for Ollama",
        "ollama create NAME -f FOLDER/Modelfile && ollama run NAME",
    ),
    "gguf": ("gguf", "a GGUF file of the whole model", "llama-cli -m FILE"),
    "gguf-adapter": (
        "gguf",
        "a LoRA adapter as a GGUF file, to be used beside one of its base",
        "llama-cli -m BASE.gguf --lora FILE",
    ),
    "vllm": ("peft", "a LoRA adapter for vLLM", "vllm serve BASE --lora-modules NAME=FOLDER"),
}
"""By form: the Hub's name of the library, the form in words, and how to open it."""

SETTINGS = {
    "lora": ("rank", "alpha", "use_rslora", "variant", "targets", "dropout", "merge_aware"),
    "train": ("steps", "epochs", "batch_size", "learning_rate", "schedule", "seed", "objective"),
    "data": ("max_length", "loss_on", "chat_template"),
}
RESULTS = {
    "eval_loss_before": "held-out loss before",
    "eval_loss_after": "held-out loss after",
    "train_loss": "training loss at the end",
    "supervised_tokens": "supervised tokens",
    "trainable_parameters": "trained parameters",
    "device": "device",
}


def card_of_adapter(adapter: Path, base: str, form: str, measured: Mapping[str, Any]) -> str:
    """The card of what was made from an adapter, by its run's record if that is there."""
    run = run_folder_of(adapter)
    return card(run if (run / "provenance.json").is_file() else None, base, form, measured)


def card(run: Path | None, base: str, form: str, measured: Mapping[str, Any] | None = None) -> str:
    """The text of a card.

    Args:
        run: the run folder; ``None`` if there is none.
        base: the name of the base model.
        form: a key of `FORMS`.
        measured: what was measured of the written files.
    """
    library, what, opening = FORMS[form]
    name = _shown(base)
    front: dict[str, Any] = {
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": ["graftlm", "full" if form == "full" else "lora"],
    }
    repository = without_revision(base)[0]
    if HUB_ID.fullmatch(repository):
        front["base_model"] = repository
    settings = _settings_in(run)
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=True)}---",
        f"# Fine-tuned from {name}\n\nThis is {what}, made by graftlm.\n\n    {opening}",
        "## Origin\n\n" + _list(_origin(run, name, settings)),
    ]
    if settings is not None:
        parts.append("## Settings\n\n" + _list(_settings(settings)))
    if results := _results(run) | dict(measured or {}):
        parts.append("## Measured\n\n" + _list(results))
    parts.append("## Licence\n\n" + _licence(base, name))
    return "\n\n".join(parts) + "\n"


def write_card(folder: Path, text: str) -> None:
    """Write a card into ``folder``; one that is there already stays."""
    if not (folder / CARD).exists():
        with atomic_write(folder / CARD) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _settings_in(run: Path | None) -> RunConfig | None:
    if run is None or not (run / "config.yaml").is_file():
        return None
    return recorded_config(run / "config.yaml")


def _origin(run: Path | None, name: str, settings: RunConfig | None) -> dict[str, Any]:
    found: dict[str, Any] = {"base model": name}
    if run is None:
        return found
    record = read_record(run / "provenance.json")
    if digest := object_in(record, "base").get("sha256"):
        found["base weights, sha256"] = digest
    for path, digest in object_in(record, "data").items():
        found[f"data {Path(path).name}, sha256"] = digest
    for which, digest in object_in(record, "rows_sha256").items():
        if digest:
            found[f"rows to {'train on' if which == 'train' else 'measure on'}, sha256"] = digest
    if settings is not None:
        stored = settings.model.weight_format if settings.method == "qlora" else "16 or 32 bits"
        found["method"] = f"{settings.method}, base in {stored}"
    return found


def _settings(settings: RunConfig) -> dict[str, Any]:
    dumped = settings.model_dump(mode="json")
    parts = ["train", "data"] if settings.method == "full" else ["lora", "train", "data"]
    chosen = {f"{part}.{key}": dumped[part][key] for part in parts for key in SETTINGS[part]}
    return {key: value for key, value in chosen.items() if value not in (None, "", False, [])}


def _results(run: Path | None) -> dict[str, Any]:
    if run is None or not (run / "summary.json").is_file():
        return {}
    summary = read_record(run / "summary.json")
    return {words: summary[key] for key, words in RESULTS.items() if summary.get(key) is not None}


def _licence(base: str, name: str) -> str:
    model = builtin.name_of(base)
    if model is not None:
        return builtin.MODELS[model].notice
    return (
        f"What is made from {name} is bound by its licence. Read it where the base model comes "
        "from, before you share this; graftlm's own licence does not cover it."
    )


def _shown(base: str) -> str:
    """The base's name for others: no folder of this machine."""
    model = builtin.name_of(base)
    known = HUB_ID.fullmatch(without_revision(base)[0])
    return model or (base if known else Path(base).name)


def _list(values: Mapping[str, Any]) -> str:
    return "\n".join(f"- {key}: {_text(value)}" for key, value in values.items())


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
