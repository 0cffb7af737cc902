"""GGUF files: dequantised once into the cache, then an ordinary model folder.

    python -m graftlm.models.gguf_convert FILE FOLDER

The weights of a GGUF are in the block formats of llama.cpp (Q4_K, Q6_K, Q8_0, …). They are stored
here as bfloat16, whose 8-bit mantissa is finer than those formats. The few tensors that a GGUF
holds in float32 (norms) are rounded.

Conversion holds the whole model in memory. It runs in a separate process, so that this memory does
not count in the peak of the run that uses the model.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from graftlm.cache import cache_folder, forget, once, said_damaged
from graftlm.errors import GraftLMError, ModelError, ResourceError, error_in, record_of
from graftlm.files import require_free_space
from graftlm.models.converted_folder import damage_of, record_files
from graftlm.models.gguf_header import GGUFHeader, read_header
from graftlm.system.child import end_with_parent

__all__ = ["conversion_bytes", "converted", "file_sha256", "loaded_from_gguf", "undamaged"]

BYTES_PER_GGUF_BYTE = 4.5  # bfloat16 over the densest usual block format
_LIBRARIES = 400_000_000
"""What Python, PyTorch and transformers take."""
CHECKED = "2"
"""Part of the cache key. Raise it to convert again what an older version converted."""


def converted(file: Path, sha256: str | None = None, most_bytes: int | None = None) -> Path:
    """The model folder converted from a GGUF file; from the cache if it is there and undamaged.

    Args:
        file: the `.gguf` file.
        sha256: the checksum of a complete file, if known; it is the key in the cache.
        most_bytes: the memory that the conversion may take.

    Raises:
        ModelError: the file is not a GGUF, is corrupt, or lacks weights of its model.
        ResourceError: the disk is too small, the conversion would take more than ``most_bytes``,
            or its process was killed, for example for memory.
    """
    file = file.resolve()
    status = file.stat()
    key = sha256 or f"{file_sha256(file, status.st_size, status.st_mtime_ns)}-{CHECKED}"
    undamaged(key)
    return once("models", key, lambda folder: _convert_in_a_process(file, folder, most_bytes))


def undamaged(key: str) -> Path | None:
    """The converted folder of this key, if it is in the cache; a damaged one is removed."""
    place = cache_folder() / "models" / key
    if not place.exists():
        return None
    if why := damage_of(place):
        said_damaged(place, why)
        forget("models", key)
        return None
    return place


def conversion_bytes(header: GGUFHeader) -> int:
    """About the peak memory of a conversion.

    The model is in 16 bits. transformers dequantises a tensor at once, in float32, with
    intermediate results: about 16 bytes for each of its weights. On Gemma 3 270M this gives 3.6 GB;
    3.3 GB were measured.
    """
    sizes = header.tensors.values()
    return _LIBRARIES + 2 * sum(sizes) + 16 * max(sizes, default=0)


def _convert_in_a_process(file: Path, folder: Path, most_bytes: int | None) -> None:
    if lost := [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]:
        raise ModelError(
            f"reading {file.name} needs the package {lost[0]}: pip install {' '.join(lost)}"
        )
    need = conversion_bytes(read_header(file))
    if most_bytes is not None and need > most_bytes:
        raise ResourceError(
            f"{file.name} must be converted once, which takes about {need / 1e9:.1f} GB of "
            f"memory; this run may take {most_bytes / 1e9:.2f} GB. `graftlm plan` converts it, "
            "too, and keeps no limit."
        )
    require_free_space(cache_folder(), int(file.stat().st_size * BYTES_PER_GGUF_BYTE), "Converting")
    print(f"Converting {file.name} once into {cache_folder()} …", file=sys.stderr)
    command = [sys.executable, "-m", "graftlm.models.gguf_convert", str(file), str(folder)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        # stdin stays open as long as this process lives; nothing is written to it.
        output, errors = _outputs(process)
    finally:
        process.kill()  # after an interrupt; no effect if it has ended already
        process.wait()
        assert process.stdin is not None
        process.stdin.close()
    if process.returncode == 0:
        return
    *_, words = "", *output.decode(errors="replace").strip().splitlines()  # after others' words
    if process.returncode == 1 and words.startswith('{"error": '):
        raise error_in(json.loads(words))
    last = "".join(errors.decode(errors="replace").strip().splitlines()[-1:])
    if process.returncode == -signal.SIGKILL:
        raise ResourceError(
            f"converting {file} was killed, as the system does for lack of memory. Convert it on a "
            "machine with more: the whole model is in memory in 16 bits."
        )
    raise ModelError(
        f"converting {file} ended with exit status {process.returncode}: {last or 'no message'}. "
        "The file may be corrupt."
    )


def _outputs(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """All of stdout and stderr; unlike `communicate`, this leaves stdin open."""
    assert process.stdout is not None
    assert process.stderr is not None
    errors: list[bytes] = []
    reader = threading.Thread(target=lambda: errors.append(process.stderr.read()), daemon=True)  # type: ignore[union-attr]
    reader.start()
    with process.stdout, process.stderr:
        output = process.stdout.read()
        process.wait()
        reader.join()
    return output, b"".join(errors)


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from graftlm._compat.base_name import set_base_name
    from graftlm.models.loading_report import captured_messages, require_complete
    from graftlm.models.save import write_model

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        with captured_messages():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.bfloat16,
                output_loading_info=True,
            )
    except Exception as error:  # the gguf reader raises many types for a corrupt file
        raise ModelError(
            f"cannot read {file}: {type(error).__name__}: {error}. The file may be corrupt, or of "
            "an architecture that transformers does not read from GGUF."
        ) from error
    model, report = loaded
    require_complete(
        file, report, "The file is incomplete, or of a variant that transformers does not read."
    )
    set_base_name(model, file.stem)
    write_model(model, tokenizer, folder)
    record_files(folder)


def loaded_from_gguf(file: Path) -> Any:
    """The model in a GGUF file in float32, read by transformers; for tests and proofs.

    Raises:
        ModelError: transformers cannot read it, or it lacks weights.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    from graftlm.models.loading_report import captured_messages, require_complete

    with captured_messages():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            output_loading_info=True,
        )
    model, report = loaded
    require_complete(file, report, "The file is incomplete.")
    return model


@functools.lru_cache(maxsize=16)
def file_sha256(file: Path, size: int, mtime_ns: int) -> str:
    """Checksum of a file; ``size`` and ``mtime_ns`` are part of the cache key."""
    del size, mtime_ns
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _main(file: str, folder: str) -> int:
    end_with_parent()
    try:
        _convert(Path(file), Path(folder))
    except GraftLMError as error:
        print(json.dumps(record_of(error)))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
