"""A server in a thread of this process: a tiny base with two adapters."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from graftlm.serve.app import application
from graftlm.serve.engine import Engine, Writer
from graftlm.serve.guard import Limits
from graftlm.serve.server import server_for
from graftlm.serve.voices import Voice

TEMPLATE = (
    "{% if tools %}[{{ tools | tojson }}]{% endif %}"
    "{% for m in messages %}{% if m.role == 'bad' %}{{ raise_exception('no bad') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="session")
def chat_llama(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with a chat template and weights whose answers vary."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("served") / "tiny-chat"
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapters(chat_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two adapters, each with answers of its own."""
    import torch

    from graftlm.adapters import add_lora
    from graftlm.adapters.peft_format import save_adapter
    from graftlm.config import LoRAConfig
    from graftlm.models import load_model

    found = {}
    for seed, name in enumerate(("one", "two")):
        model, _ = load_model(str(chat_llama), quantize=None)
        torch.manual_seed(seed)
        add_lora(model, LoRAConfig(rank=4))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(std=0.3)
        folder = tmp_path_factory.mktemp("adapters") / name
        save_adapter(model, folder, base_name=str(chat_llama))
        found[name] = str(folder)
    return found


@contextlib.contextmanager
def started(
    writer: Writer, voices: Mapping[str, Voice], limits: Limits | None = None, **keywords: Any
) -> Iterator[int]:
    """The port of a server of these voices."""
    limits = limits or Limits()
    engine = Engine(writer)
    app = application(engine, voices, limits=limits, **keywords)
    server = server_for(app, "127.0.0.1", 0, limits)
    with socket.socket() as listening:
        # The system keeps little of what a client does not take.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield int(listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()
            engine.close()


Serve = Callable[..., contextlib.AbstractContextManager[int]]


@pytest.fixture(scope="session")
def serve(chat_llama: Path, adapters: dict[str, str]) -> Serve:
    """Serve with these keywords of `application`; gives the port."""
    from graftlm.cli.serve import _opened

    @contextlib.contextmanager
    def run(limits: Limits | None = None, **keywords: Any) -> Iterator[int]:
        writer, voices, positions = _opened(str(chat_llama), adapters, None, "cpu", 32)
        with started(writer, voices, limits, positions=positions, **keywords) as port:
            yield port

    return run


@pytest.fixture(scope="session")
def port(serve: Serve) -> Iterator[int]:
    """A server with the usual settings."""
    with serve() as port:
        yield port
