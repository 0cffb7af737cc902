"""Resolves a model name: a folder, a Hub id, a `.gguf` file, or a built-in.

A Hub id may end in a version of the repository, ``owner/name@revision``: a branch, a tag or a
commit.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from graftlm.cache import cache_folder
from graftlm.errors import ModelError, near_matches
from graftlm.models import builtin, gguf_convert
from graftlm.models.plain_files import require_plain_files

__all__ = [
    "HUB_ID",
    "ResolvedModel",
    "original_gguf",
    "resolve",
    "with_revision",
    "without_revision",
]

Kind = Literal["folder", "hub", "gguf", "builtin"]

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
REVISION = re.compile(r"[\w.-][\w./-]*")
WANTED_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
UNWANTED_FILES = ["*/*", "consolidated*"]


class ResolvedModel(NamedTuple):
    """A model that is ready to be opened.

    Attributes:
        path: the local folder with config.json, safetensors and tokenizer.
        kind: the kind of name.
        name: the model's name for other tools: the Hub id with its revision, else the folder.
    """

    path: Path
    kind: Kind
    name: str


def resolve(
    name: str | Path, *, trust_remote_code: bool = False, most_bytes: int | None = None
) -> ResolvedModel:
    """Find a model. Downloads it, or converts it into the cache, if needed.

    Args:
        name: a folder, a Hub id, a `.gguf` file or a built-in name.
        trust_remote_code: also download Python code.
        most_bytes: the memory that a conversion may take.

    Raises:
        ModelError: there is no model of this name; the message lists similar names.
    """
    text = str(name)
    path = Path(name).expanduser()
    if path.is_dir():
        if (
            built_in := builtin.name_of(path)
        ) is not None and path.absolute().parent == cache_folder() / "models":
            path = builtin.folder_of(built_in, most_bytes)
        _require_model(path)
        return ResolvedModel(path, "folder", text)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{text} is a file; expected a model folder or a .gguf file.")
        folder = gguf_convert.converted(path, most_bytes=most_bytes)
        return ResolvedModel(folder, "gguf", str(folder))
    if text in builtin.MODELS:
        folder = builtin.folder_of(text, most_bytes)
        return ResolvedModel(folder, "builtin", str(folder))
    repository, revision = without_revision(text)
    if HUB_ID.fullmatch(repository) and path.suffix != ".gguf" and not path.parent.is_dir():
        return ResolvedModel(_download(repository, revision, trust_remote_code), "hub", text)
    raise ModelError(_not_found(text, path))


def without_revision(name: str) -> tuple[str, str | None]:
    """The Hub id and the revision in ``name``; any other name as it is, without one."""
    repository, _, revision = name.partition("@")
    if HUB_ID.fullmatch(repository) and REVISION.fullmatch(revision):
        return repository, revision
    return name, None


def with_revision(name: str, revision: str | None) -> str:
    """The Hub id ``name`` at ``revision``; any other name as it is."""
    one = f"{name}@{revision}"
    there = Path(name).expanduser().exists()
    return one if revision and not there and without_revision(one)[1] == revision else name


@contextlib.contextmanager
def original_gguf(name: str | Path) -> Iterator[Path | None]:
    """The GGUF file that the model ``name`` was converted from; ``None`` for other models.

    The folder of a built-in in the cache is that built-in, because adapters may name it.
    """
    path = Path(name).expanduser()
    if (model := builtin.name_of(name)) is not None:
        with builtin.assembled(model) as file:
            yield file
        return
    yield path if path.is_file() and path.suffix == ".gguf" else None


def _require_model(folder: Path) -> None:
    require_plain_files(folder, ModelError)
    if (folder / "config.json").is_file():
        _require_usual_quantization(folder / "config.json")
        return
    if (folder / "adapter_config.json").is_file() or (folder / "adapter").is_dir():
        raise ModelError(
            f"{folder} holds an adapter, not a model. Name its base model, and this folder as the "
            "adapter."
        )
    ggufs = sorted(folder.glob("*.gguf"))
    hint = f" For the GGUF file in it, name the file: {ggufs[0]}" if ggufs else ""
    raise ModelError(f"{folder} has no config.json, so it is not a model folder.{hint}")


def _require_usual_quantization(config: Path) -> None:
    """Refuse an entry that transformers fails on, whichever of its classes reads the file first."""
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return  # whoever needs it says what is wrong with the file
    settings = content.get("quantization_config") if isinstance(content, dict) else None
    if settings is not None and not isinstance(settings, dict):
        raise ModelError(
            f"quantization_config in {config} is a {type(settings).__name__}; expected an object "
            "that names the method. Remove the entry if the weights are in 16 or 32 bits."
        )


def _not_found(text: str, path: Path) -> str:
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    nearby = {
        str(path.with_name(entry.name))
        for entry in siblings
        if entry.suffix == ".gguf" or (entry / "config.json").is_file()
    }
    hint = near_matches(text, sorted({*builtin.MODELS, *nearby}))
    return (
        f"no model is called {text!r}{hint or '.'} Expected a folder, a .gguf file, a Hub id "
        f"such as owner/name, or a built-in: {', '.join(sorted(builtin.MODELS))}."
    )


def _download(name: str, revision: str | None, trust_remote_code: bool) -> Path:
    """Download the safetensors, config and tokenizer of a repository, or find them in the cache."""
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    python = ["*.py"] if trust_remote_code else []
    try:
        folder = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=WANTED_FILES + python,
            ignore_patterns=UNWANTED_FILES,
        )
    except GatedRepoError as error:
        raise ModelError(
            f"{name} is gated: accept its licence at https://huggingface.co/{name}, then log in "
            "with `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{name} has no revision {revision!r} on the Hub.") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the Hub has no model {name!r}, or it is private and you are not logged in"
            f"{near_matches(name, builtin.MODELS) or '.'}"
        ) from error
    except Exception as error:  # network errors come in many types
        at = f" at revision {revision}" if revision else ""
        offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
        why = "HF_HUB_OFFLINE is set" if offline else f"{type(error).__name__}: {error}"
        raise ModelError(
            f"there is no folder {name!r} here, and it{at} cannot be fetched from the Hub ({why}). "
            "Check the network, or download the model elsewhere and name its folder."
        ) from error
    path = Path(folder)
    _require_model(path)
    return path
