"""Code that several commands share."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "AdapterOption",
    "DeviceOption",
    "JsonOption",
    "ModelArgument",
    "QuantizeOption",
    "open_model",
    "say",
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, nothing else.")]
ModelArgument = Annotated[
    str, typer.Argument(help="A folder, a Hub id, a .gguf file, or a built-in: gemma-3-270m.")
]
AdapterOption = Annotated[
    str | None, typer.Option(help="A PEFT adapter folder, or a run folder.", show_default=False)
]
DeviceOption = Annotated[
    str,
    typer.Option(
        help="cpu, cuda, cuda:1, xpu or mps; auto: an accelerator with room for the model, else "
        "the CPU."
    ),
]
QuantizeOption = Annotated[
    str | None,
    typer.Option(
        help="Hold the base in a weight format (`nf4`: 4 bits) or as it is (`none`). "
        "Default: as the adapter was trained, else as it is.",
        show_default=False,
    ),
]


def say(result: dict[str, Any], as_json: bool, text: str) -> None:
    """Print ``result`` as one JSON object on stdout, or ``text`` for people.

    JSON has no NaN and no infinity: both become null.
    """
    if not as_json:
        print(text)
        return
    from graftlm.files import finite  # with what it imports, 5 ms that `--help` does not need

    ascii_only = sys.stdout.encoding.lower().replace("-", "") != "utf8"
    print(json.dumps(finite(result), ensure_ascii=ascii_only, allow_nan=False))


def program() -> str:
    """How to call graftlm again: its name, or Python with it where that is not on the path."""
    if shutil.which("graftlm") is not None:
        return "graftlm"
    return f"{shlex.quote(sys.executable)} -m graftlm"


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


def stderr_console() -> Console:
    """The console for progress and logs."""
    from rich.console import Console

    return Console(stderr=True)


def open_model(
    model: str,
    adapter: str | None,
    quantize: str | None,
    device: str,
    name: str = "default",
) -> tuple[Any, Any]:
    """Load ``model`` with ``adapter``, if given, and the tokenizer of its training.

    The adapter has the name ``name`` in the model.
    """
    from graftlm.adapters.open_model import open_model as opened  # it loads torch

    return opened(model, adapter, quantize, device, name)


def in_llama_cpp(model: str, adapter: str | None, quantize: str | None) -> Any:
    """The file ``model`` opened by llama.cpp; ``None`` if graftlm itself is to run it.

    llama.cpp runs a GGUF file where `llama-cpp-python` is installed, alone or with an adapter that
    is a GGUF file too.

    Raises:
        ModelError: the adapter is a GGUF file, and llama.cpp cannot run it.
    """
    from graftlm.errors import ModelError
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
