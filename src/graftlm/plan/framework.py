"""What a training process occupies before any model: interpreter, libraries, tokenizer.

It is measured, once per environment and tokenizer: a rehearsal of a two-layer model of 64 features,
whose own tensors are under a megabyte, goes through every library a real run goes through.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from graftlm.cache import once
from graftlm.config import ModelConfig, RunConfig, TrainConfig
from graftlm.plan.rehearsal import Measured, rehearse
from graftlm.system import versions

__all__ = ["framework_memory"]

TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "*.model", "chat_template*")
VERSION = 1
"""Raised when what is measured here changes."""


def framework_memory(folder: Path | None = None) -> Measured:
    """Memory of a training process without a model, with the tokenizer of ``folder``."""
    files = _tokenizer_files(folder) if folder else []
    key = hashlib.sha256(
        json.dumps(
            [VERSION, versions(), [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]]
        ).encode()
    ).hexdigest()[:32]
    made = once("plan", f"framework-{key}", lambda target: _measure(files, target))
    return Measured(**json.loads((made / "measured.json").read_text(encoding="utf-8")))


def _tokenizer_files(folder: Path) -> list[Path]:
    return sorted({f for pattern in TOKENIZER_FILES for f in folder.glob(pattern) if f.is_file()})


def _measure(tokenizer_files: list[Path], target: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        architecture = LlamaConfig(
            vocab_size=320,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
        LlamaForCausalLM(architecture).save_pretrained(folder)
        if tokenizer_files:
            for file in tokenizer_files:
                shutil.copy(file, folder / file.name)
        else:
            _byte_tokenizer().save_pretrained(folder)
        config = RunConfig(
            method="qlora", model=ModelConfig(name=str(folder)), train=TrainConfig(batch_size=1)
        )
        measured = rehearse(config, rows=1, length=16)
    text = json.dumps(
        {name: getattr(measured, name) for name in measured.__dataclass_fields__}, indent=2
    )
    (target / "measured.json").write_text(text, encoding="utf-8")


def _byte_tokenizer() -> Any:
    """A tokenizer that costs nothing, for a config that comes without one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate([*alphabet, "</s>"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, eos_token="</s>"
    )
