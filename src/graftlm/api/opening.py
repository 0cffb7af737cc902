"""What a name stands for: a model, a run or adapter folder, or a file for llama.cpp."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from graftlm.errors import ModelError

if TYPE_CHECKING:
    from graftlm.models.llama_cpp import LlamaCpp

__all__ = ["in_llama_cpp", "run_named"]


def run_named(model: str, adapter: str | None) -> tuple[str, str | None]:
    """The model and the adapter that the arguments name.

    The model may also be a run folder or an adapter folder, which names its base.
    """
    from graftlm.adapters.adapter_folder import base_of
    from graftlm.training.run_folder import result_folder

    folder = Path(model)
    if adapter is not None or not (folder / "config.yaml").is_file():
        is_adapter = adapter is None and (folder / "adapter_config.json").is_file()
        return (base_of(folder), model) if is_adapter else (model, adapter)
    whole = result_folder(folder, "full")
    return (str(whole), None) if whole.is_dir() else (base_of(folder), model)


def in_llama_cpp(model: str, adapter: str | None, quantize: str | None) -> LlamaCpp | None:
    """The file ``model`` opened by llama.cpp; ``None`` if graftlm itself is to run it.

    llama.cpp runs a GGUF file where `llama-cpp-python` is installed, alone or with an adapter that
    is a GGUF file too.

    Raises:
        ModelError: the adapter is a GGUF file, and llama.cpp cannot run it.
    """
    from graftlm.models import llama_cpp

    file = Path(model)
    own_adapter = adapter is not None and adapter.endswith(".gguf")
    if own_adapter and file.suffix != ".gguf":
        raise ModelError(
            f"{adapter} is for llama.cpp: name a .gguf file of its base as the model. "
            "`graftlm export ADAPTER --to gguf` writes the merged model as one file"
        )
    if file.suffix != ".gguf" or not file.is_file() or quantize is not None:
        return None
    if not own_adapter and (adapter is not None or not llama_cpp.installed()):
        return None
    print(f"running {file.name} in llama.cpp", file=sys.stderr)
    return llama_cpp.LlamaCpp(file, Path(adapter) if adapter else None)
