"""GGUF files: dequantised once into the cache, then an ordinary model folder.

The weights of a GGUF are in the block formats of llama.cpp (Q4_K, Q6_K, Q8_0, …). They are stored
here as bfloat16, whose 8-bit mantissa is finer than what those formats keep; the few tensors that a
GGUF holds in float32 (norms) are rounded by it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import sys
from pathlib import Path

from graftlm.cache import cache_folder, once
from graftlm.errors import ModelError
from graftlm.files import require_free_space

__all__ = ["converted", "file_sha256"]

BYTES_PER_GGUF_BYTE = 4.5  # bfloat16 over the densest usual block format


def converted(file: Path, sha256: str | None = None) -> Path:
    """The model folder made from a GGUF file, from the cache when it is there.

    Args:
        file: the `.gguf` file.
        sha256: its checksum, if known; it is the key in the cache.
    """
    file = file.resolve()
    status = file.stat()
    key = sha256 or file_sha256(file, status.st_size, status.st_mtime_ns)
    return once("models", key, lambda folder: _convert(file, folder))


def _convert(file: Path, folder: Path) -> None:
    if lost := [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]:
        raise ModelError(
            f"reading {file.name} needs the package {lost[0]}: pip install {' '.join(lost)}"
        )
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelError(f"{file} is not a GGUF file: it does not start with the letters GGUF.")
    require_free_space(cache_folder(), int(file.stat().st_size * BYTES_PER_GGUF_BYTE), "Converting")
    print(f"Converting {file.name} once into {cache_folder()} …", file=sys.stderr)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
    except Exception as error:  # the gguf reader raises whatever a corrupt file leads to
        raise ModelError(
            f"cannot read {file}: {type(error).__name__}: {error}. The file may be corrupt, or of "
            "an architecture that transformers does not read from GGUF."
        ) from error
    from graftlm.models.save import write_model

    model.config._name_or_path = file.stem
    write_model(model, tokenizer, folder)


@functools.lru_cache(maxsize=16)
def file_sha256(file: Path, size: int, mtime_ns: int) -> str:
    """Checksum of a file; ``size`` and ``mtime_ns`` make a changed file another question."""
    del size, mtime_ns
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
