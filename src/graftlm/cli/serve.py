"""`graftlm serve`: an OpenAI-compatible endpoint for a model and its adapters."""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graftlm.api.opening import in_llama_cpp, run_named
from graftlm.cli._shared import (
    MOST_TOKENS,
    DeviceOption,
    ModelArgument,
    QuantizeOption,
    open_model,
)

if TYPE_CHECKING:
    from graftlm.serve.engine import Writer
    from graftlm.serve.voices import Voice

__all__ = ["serve"]

KEY = "GRAFTLM_API_KEY"


def serve(
    model: ModelArgument,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=FOLDER: an adapter or run folder, asked for by its name. Repeatable.",
            show_default=False,
        ),
    ] = None,
    quantize: QuantizeOption = None,
    device: DeviceOption = "auto",
    host: Annotated[
        str, typer.Option(help="The address. Any but this machine's own needs a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            help=f"The key that each request needs. Better in ${KEY}, where others cannot see it.",
            show_default=False,
        ),
    ] = None,
    rows: Annotated[
        int, typer.Option(min=1, max=256, help="Answers that are written at once.")
    ] = 32,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, max=MOST_TOKENS, help="The longest answer.")
    ] = 2048,
) -> None:
    """Answer requests in OpenAI's protocol: /v1/chat/completions, /v1/completions, /v1/models.

    Example: `graftlm serve gemma-3-270m --adapter orders=runs/first --port 8000`

    Then, with any client: base URL `http://127.0.0.1:8000/v1`, model `orders` or `gemma-3-270m`.
    A .gguf file is run by llama.cpp where `llama-cpp-python` is installed, one answer at a time.
    """
    from graftlm.errors import ConfigError, ResourceError

    try:
        import uvicorn  # noqa: F401
        from starlette import applications  # noqa: F401
    except ImportError as error:
        raise ResourceError(
            "serve needs starlette and uvicorn: pip install 'graftlm[serve]'"
        ) from error
    from graftlm.serve.guard import Limits, is_local

    key = api_key or os.environ.get(KEY) or None
    if not is_local(host) and key is None:
        raise ConfigError(
            f"--host {host} lets other machines ask: give a key too, by --api-key or ${KEY}"
        )
    limits = Limits(new_tokens=max_new_tokens)
    folders = _named(adapter or [])
    writer, voices, positions = _opened(model, folders, quantize, device, rows)
    _run(writer, voices, positions, host, port, key, limits)


def _named(adapters: list[str]) -> dict[str, str]:
    """The adapters' folders by name; without ``NAME=``, the folder's own name."""
    from graftlm.errors import ConfigError
    from graftlm.serve.voices import require_name

    folders: dict[str, str] = {}
    for given in adapters:
        name, equals, folder = given.partition("=")
        if not equals or os.sep in name:
            name, folder = Path(given).name, given
        if require_name(name) in folders:
            raise ConfigError(f"--adapter: two are named {name!r}; write NAME=FOLDER")
        folders[name] = folder
    return folders


def _opened(
    model: str, folders: dict[str, str], quantize: str | None, device: str, rows: int
) -> tuple[Writer, dict[str, Voice], int | None]:
    """What writes answers, the names that can be asked for, and the tokens that fit."""
    from graftlm.adapters.adapter_folder import recorded_settings, trained_on
    from graftlm.adapters.adapter_tokenizer import adapter_tokenizer
    from graftlm.adapters.by_row import AdaptersByRow
    from graftlm.adapters.inject import activate
    from graftlm.adapters.peft_format import load_adapter
    from graftlm.data.audit.fits import limits_of
    from graftlm.errors import ConfigError
    from graftlm.models import load_tokenizer
    from graftlm.models.decoding.decoder import Decoder
    from graftlm.serve.voices import TokenizerVoice, require_name

    own = Path(model).name.removesuffix(".gguf")
    base, alone = run_named(model, None)
    if alone is not None:  # a run or adapter folder: its name is the adapter's
        folders = {own: alone} | folders
        own = Path(base).name
    require_name(own)
    if own in folders:
        raise ConfigError(f"--adapter: {own!r} is the base's name; write another NAME=FOLDER")
    if len(folders) <= 1:
        file = in_llama_cpp(base, next(iter(folders.values()), None), quantize)
        if file is not None:
            return _in_llama(file, next(iter(folders), own))
    aware = [
        name
        for name, folder in folders.items()
        if (run := recorded_settings(base, folder)) is not None and run.lora.merge_aware
    ]
    if aware and len(folders) > 1:
        raise ConfigError(
            f"--adapter {aware[0]}: it was trained through its merge, which changes the base for "
            "every adapter. Serve it alone, or serve its merged model."
        )
    bases = {name: trained_on(folder) for name, folder in folders.items()}
    if quantize is None and len(set(bases.values())) > 1:
        raise ConfigError(
            f"--adapter: they were trained on bases held differently ({bases}); say by --quantize "
            "how to hold the one that serves them all"
        )
    first = next(iter(folders), None)
    loaded, tokenizer = open_model(
        base, None if first is None else folders[first], quantize, device, first or "default"
    )
    voices: dict[str, Voice] = {}
    plain = tokenizer if first is None else load_tokenizer(base)
    if not aware:
        voices[own] = TokenizerVoice.of(plain, None)
    for name, folder in folders.items():
        if name != first:
            load_adapter(loaded, folder, name=name)
        spoken = adapter_tokenizer(folder, copy.deepcopy(plain))
        voices[name] = TokenizerVoice.of(spoken, name)
    by_row = None
    if folders:
        activate(loaded, first or "")
        by_row = AdaptersByRow(loaded)
    decoder = Decoder(
        loaded,
        plain,
        use_adapters=None if by_row is None else by_row.use,
        mixed=by_row is None or by_row.together,
        most_rows=rows,
    )
    return decoder, voices, limits_of(loaded.config.to_dict()).positions


def _in_llama(file: Any, name: str) -> tuple[Writer, dict[str, Voice], int | None]:
    from graftlm.serve.llama import LlamaVoice, LlamaWriter

    return LlamaWriter(file), {name: LlamaVoice(file)}, file.context


def _run(
    writer: Writer,
    voices: dict[str, Voice],
    positions: int | None,
    host: str,
    port: int,
    key: str | None,
    limits: Any,
) -> None:
    import asyncio
    import socket

    from graftlm.errors import ResourceError
    from graftlm.serve.app import application
    from graftlm.serve.engine import Engine
    from graftlm.serve.guard import is_local
    from graftlm.serve.server import server_for

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host.strip("[]"), port))
    except OSError as error:
        raise ResourceError(
            f"--host {host} --port {port}: {error.strerror or error}. Choose another port; 0 takes "
            "a free one"
        ) from error
    engine = Engine(writer)
    app = application(
        engine, voices, local=is_local(host), key=key, limits=limits, positions=positions
    )
    shown = f"[{host.strip('[]')}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}/v1"
    print(f"{address} serves {', '.join(voices)}; Ctrl-C ends it", file=sys.stderr, flush=True)
    server = server_for(app, host, port, limits)
    try:
        asyncio.run(server.serve(sockets=[listening]))
    finally:
        engine.close()
