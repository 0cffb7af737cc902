"""The tokenizer that an adapter was trained with, with its chat template.

An adapter needs prompts in the format of its training. Its folder therefore contains the tokenizer
with the chat template that was used, as in PEFT. For an adapter of a stopped run, the settings of
the run name the template. The vocabulary is the base's, with new tokens behind it if the adapter
trains their rows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftlm.adapters.adapter_folder import adapter_folder, run_folder_of, run_settings
from graftlm.adapters.peft_config import read_config
from graftlm.data.chat import use_chat_template
from graftlm.data.new_tokens import add_tokens
from graftlm.data.prompt_format import PromptFormat, with_format
from graftlm.errors import ArtifactError
from graftlm.models.base_files import as_base
from graftlm.models.load import tokenizer_in

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["adapter_tokenizer", "brings_tokenizer"]


def brings_tokenizer(adapter: str | Path) -> bool:
    """Whether the adapter's files or its run record the format of its training text."""
    return _has_files(adapter) or run_settings(adapter) is not None


def adapter_tokenizer(adapter: str | Path, base: PreTrainedTokenizerBase) -> Any:
    """The tokenizer to use an adapter with.

    Args:
        adapter: a PEFT adapter folder, or a run folder.
        base: the base model's tokenizer. If the adapter has no tokenizer, this one gets the run's
            chat template.

    Returns:
        ``base`` with the template and the settings of the adapter's own tokenizer, or that one
        where it takes text apart in another way.

    Raises:
        ArtifactError: the adapter's tokenizer has another vocabulary than the base's, and the
            adapter trains no rows for it.
    """
    if _has_files(adapter):
        own = tokenizer_in(adapter_folder(adapter))
        _require_same_vocabulary(adapter_folder(adapter), own, base)
        return as_base(own, base)
    settings = run_settings(adapter)
    if settings is None:
        return base
    add_tokens(base, settings.data.new_tokens)
    use_chat_template(base, settings.data.chat_template)
    asked = _asked_in(run_folder_of(adapter))
    return base if asked is None else with_format(base, asked)


def _asked_in(run: Path) -> PromptFormat | None:
    """The prompt form of a run's rows; ``None`` if the run does not record it."""
    try:
        recorded = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
        return PromptFormat(**recorded["rows"]["asked"])
    except KeyError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(
            f"{run / 'provenance.json'} cannot be read ({error}), so it is not known how the "
            "adapter's text was laid out. Restore the file, or use the finished adapter folder."
        ) from error


def _has_files(adapter: str | Path) -> bool:
    return (adapter_folder(adapter) / "tokenizer_config.json").is_file()


def _require_same_vocabulary(folder: Path, own: Any, base: Any) -> None:
    here, there = own.get_vocab(), base.get_vocab()
    if here == there or (there.items() <= here.items() and _trains_rows(folder)):
        return
    odd = sorted(dict(here.items() ^ there.items()))
    raise ArtifactError(
        f"the tokenizer in {folder} has another vocabulary than the base model's: {len(odd)} "
        f"tokens differ, such as {odd[0]!r}. Name the base the adapter was trained on; only an "
        "adapter that trains the rows of new tokens may add some. (Without tokenizer_config.json, "
        "the base's is used.)"
    )


def _trains_rows(folder: Path) -> bool:
    config = read_config(folder)
    return bool(config.trainable_token_indices or config.modules_to_save)
