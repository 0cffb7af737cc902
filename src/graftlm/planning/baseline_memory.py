"""The memory of a training process without a model: interpreter, libraries, tokenizer.

It is measured once per environment and tokenizer. A small model is trained for three steps, which
loads every library and kernel that a real run needs. The size of its tensors, known from a trace,
is subtracted. The measurement runs twice and the second counts: a page fault also maps neighbouring
pages of a library, but only those in the file cache. So the first process after an install, or
after a pause, occupies up to a tenth less memory than the later ones.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from graftlm.cache import kept
from graftlm.config import ModelConfig, RunConfig, TrainConfig
from graftlm.files import temporary_folder, write_json
from graftlm.models.quiet import without_progress_bars
from graftlm.planning.trace import BatchShape, trace_step
from graftlm.planning.trial_run import Measured, run_trial
from graftlm.system import versions

__all__ = ["byte_tokenizer", "framework_memory"]

TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "*.model", "chat_template*")
FILE = "measured.json"
VERSION = 13
"""Increase it when this measurement changes."""


def framework_memory(folder: Path | None = None) -> Measured:
    """Memory of a training process without a model, with the tokenizer of ``folder``."""
    found = {f for pattern in TOKENIZER_FILES if folder for f in folder.glob(pattern)}
    files = sorted(file for file in found if file.is_file())
    key = hashlib.sha256(json.dumps([VERSION, versions(), [f.name for f in files]]).encode())
    for file in files:  # by content: copies of a tokenizer share one measurement
        key.update(file.read_bytes())
    name = f"framework-{key.hexdigest()[:32]}"
    return kept("plan", name, lambda to: _measure(files, to), _read)


def _read(folder: Path) -> Measured:
    return TypeAdapter(Measured).validate_json((folder / FILE).read_bytes())


def _measure(tokenizer_files: list[Path], target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    architecture = LlamaConfig(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=2,
        num_attention_heads=8,
        tie_word_embeddings=True,
    )
    shape = BatchShape(rows=1, length=512, sequences=2)
    with temporary_folder("baseline") as folder:
        model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            architecture, dtype=torch.bfloat16
        )
        with without_progress_bars():
            model.save_pretrained(folder)
        for file in tokenizer_files:
            shutil.copy(file, folder / file.name)
        if not tokenizer_files:
            byte_tokenizer().save_pretrained(folder)
        settings = TrainConfig(batch_size=shape.sequences)
        config = RunConfig(device="cpu", model=ModelConfig(name=str(folder)), train=settings)
        for _ in range(2):
            measured = run_trial(config, shape.length // shape.sequences)
    own = trace_step(architecture, config, shape, torch.bfloat16)
    # Between two steps the gradients of the last one are still in memory.
    left = own.resident + 4 * own.trainable_parameters
    found = dataclasses.replace(
        measured,
        resident_bytes=measured.resident_bytes - left,
        loading_peak_bytes=measured.loading_peak_bytes - own.weight_bytes,
    )
    write_json(target / FILE, dataclasses.asdict(found))


def byte_tokenizer() -> Any:
    """A very small tokenizer, for a config without a tokenizer of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate([*alphabet, "</s>"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, eos_token="</s>"
    )
