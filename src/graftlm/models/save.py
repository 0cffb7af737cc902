"""Writes a plain transformers folder in sharded safetensors, atomically."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from graftlm.errors import ModelError
from graftlm.files import (
    atomic_folder,
    atomic_write,
    disk_errors_named,
    require_free_space,
    temporary_folder,
)
from graftlm.models.base_files import folder_read
from graftlm.models.quiet import without_progress_bars
from graftlm.models.saved_config import restore_base_files
from graftlm.models.saved_tokenizer import write_tokenizer
from graftlm.models.shard_writer import copy_beside

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["save_model", "save_tokenizer", "write_model"]

SMALL_FILES_BYTES = 100_000_000  # tokenizer, configs


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    out: str | Path,
    *,
    replace: bool = False,
) -> None:
    """Write a model and its tokenizer; tied weights are stored once.

    Args:
        model: without adapters and 4-bit layers (merge first; see also `quantize_folder`).
        tokenizer: its tokenizer.
        out: the folder to create.
        replace: whether an existing folder may be replaced.

    Raises:
        ModelError: the model still has adapters, 4-bit layers or embeddings in 8 bits.
        ResourceError: the disk is too small, or ``out`` exists or cannot be written to.
    """
    _require_plain(model)
    storages = {tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in model.parameters()}
    require_free_space(out, sum(storages.values()) + SMALL_FILES_BYTES, "Saving the model")
    with atomic_folder(out, replace=replace) as folder:
        write_model(model, tokenizer, folder)


def _require_plain(model: PreTrainedModel) -> None:
    """Refuse a model with a tensor that its class does not define."""
    with torch.device("meta"):
        known = type(model)(model.config).state_dict().keys()
    added = [name for name in model.state_dict() if name not in known]
    if not added:
        return
    module = added[0].rpartition(".")[0]
    raise ModelError(
        f"{module} is a {type(model.get_submodule(module)).__name__}: a plain model folder holds "
        "neither adapters nor 4-bit layers nor embeddings in 8 bits. Merge the adapters first: "
        "`graftlm merge` takes 16-bit embeddings from the checkpoint."
    )


def write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the model into ``folder``; the caller makes the write atomic."""
    with without_progress_bars():
        model.save_pretrained(folder, max_shard_size="4GB")
    if (source := folder_read(model)) is not None:
        copy_beside(source, folder)
    restore_base_files(model, folder)
    write_tokenizer(tokenizer, folder)


def save_tokenizer(
    tokenizer: PreTrainedTokenizerBase, folder: str | Path, *, alone: bool = False
) -> None:
    """Write a tokenizer, with its chat template, into a folder that may hold other files.

    Args:
        tokenizer: the tokenizer.
        folder: where; it is created.
        alone: whether the folder has no config.json of a model, as that of an adapter.

    Raises:
        ResourceError: the folder cannot be written.
    """
    target = Path(folder)
    with disk_errors_named(target):
        target.mkdir(parents=True, exist_ok=True)
        with temporary_folder("tokenizer", target) as temporary:
            write_tokenizer(tokenizer, temporary, alone=alone)
            for file in sorted(temporary.iterdir()):
                with atomic_write(target / file.name) as place:
                    shutil.copyfile(file, place)
