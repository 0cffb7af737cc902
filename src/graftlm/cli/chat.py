"""`graftlm chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graftlm.api.opening import in_llama_cpp, run_named
from graftlm.cli import _answers
from graftlm.cli._shared import (
    MOST_TOKENS,
    AdapterOption,
    DeviceOption,
    ModelArgument,
    QuantizeOption,
    SeedOption,
    TemperatureOption,
    finite_number,
    open_model,
)

if TYPE_CHECKING:
    from graftlm.serve.engine import Writer
    from graftlm.serve.voices import Voice

__all__ = ["chat"]

COMMANDS = """\
/reset         forget the conversation; the system message stays
/system TEXT   another system message, and a new conversation; without TEXT: none
/save FILE     add the conversation to a file, as a row to train on (JSONL)
/help          these lines
/exit          end, as do an empty line and Ctrl-D
Ctrl-C stops an answer."""
MOST_LINES = 1000
"""Lines of history that are kept."""


def chat(
    model: ModelArgument,
    adapter: AdapterOption = None,
    quantize: QuantizeOption = None,
    system: Annotated[
        str | None, typer.Option(help="A system message.", show_default=False)
    ] = None,
    tools: Annotated[
        Path | None,
        typer.Option(
            help="A JSON file: a list of the functions that the model may call, as schemas.",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, max=MOST_TOKENS, help="Longest answer in tokens.")
    ] = 500,
    temperature: TemperatureOption = 0.7,
    top_p: Annotated[
        float,
        typer.Option(
            min=0.001,
            max=1,
            help="Only the likeliest tokens, so much in sum.",
            callback=finite_number,
        ),
    ] = 1.0,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Talk to a model. An empty line or Ctrl-D ends the talk; Ctrl-C stops an answer.

    Example: `graftlm chat runs/first`

    In the talk: `/reset`, `/system TEXT`, `/save FILE`, `/help`, `/exit`. Lines are edited as in a
    shell, and earlier ones come back with the arrow keys.

    A model that was trained on plain prompts, without turns, is asked each message by itself, as
    in its training. A .gguf file is run by llama.cpp where `llama-cpp-python` is installed.
    """
    from graftlm.errors import ConfigError
    from graftlm.models.decoding.choice import Sampling
    from graftlm.models.decoding.row import Ask

    offered = _tools(tools)
    writer, voice, plain = _opened(model, adapter, quantize, device)
    if plain is not None:
        if system or offered:
            named = "--system" if system else "--tools"
            raise ConfigError(f"{named}: the model was trained on plain prompts, without turns")
        note = f"trained on {plain}: each message is asked by itself"
        print(note, file=sys.stderr)
    messages = [{"role": "system", "content": system}] if system else []
    said = 0
    with _answers.at_once(), _lines() as lines:
        for line in lines:
            if line.startswith("/"):
                try:
                    _command(line, messages)
                except EOFError:
                    break
                continue
            if plain is not None:
                messages.clear()
            messages.append({"role": "user", "content": line})
            said += 1
            ids = voice.chat(messages, offered)
            chosen = Sampling(temperature, top_p, seed + said)
            text = _answer(writer, Ask(ids, max_new_tokens, chosen, voice.stop))
            messages.append({"role": "assistant", "content": text})
    writer.close()


def _answer(writer: Writer, ask: Any) -> str:
    """Print an answer as it comes; its text, or what there is of it after Ctrl-C."""
    text = ""
    with _answers.stopped_by_interrupt() as stopped:
        for row in _answers.written(writer, ask):
            print(row.piece, end="", flush=True)
            text += row.piece
            if stopped():
                print(" …", end="")
                break
    print(flush=True)
    return text


def _opened(
    model: str, adapter: str | None, quantize: str | None, device: str
) -> tuple[Writer, Voice, str | None]:
    """What writes the answers, how it is asked, and the plain form it was trained in, if one."""
    from graftlm.data.prompt_format import format_in
    from graftlm.models.decoding.whole import writer_for
    from graftlm.serve.llama import LlamaVoice, LlamaWriter
    from graftlm.serve.voices import TokenizerVoice

    llama = in_llama_cpp(model, adapter, quantize)
    if llama is not None:
        form = format_in(llama.template)
        return LlamaWriter(llama), LlamaVoice(llama), None if form is None else str(form)
    loaded, tokenizer = open_model(*run_named(model, adapter), quantize, device)
    form = format_in(tokenizer.chat_template)
    voice = TokenizerVoice.of(tokenizer, None)
    return writer_for(loaded, tokenizer), voice, None if form is None else str(form)


def _tools(file: Path | None) -> Any:
    from graftlm.data.messages import RowError, parse_tools
    from graftlm.errors import ConfigError

    if file is None:
        return None
    try:
        return parse_tools(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RowError) as error:
        raise ConfigError(f"--tools {file}: {error}") from error


def _command(line: str, messages: list[dict[str, str]]) -> None:
    """Do what a line that begins with a slash says.

    Raises:
        EOFError: it ends the talk.
    """
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    system = [message for message in messages if message["role"] == "system"]
    if name == "/exit":
        raise EOFError
    if name == "/reset":
        messages[:] = system
        _note("a new conversation")
    elif name == "/system":
        messages[:] = [{"role": "system", "content": rest}] if rest else []
        _note("a new conversation " + ("with that system message" if rest else "without one"))
    elif name == "/save" and rest:
        _save(Path(rest).expanduser(), messages)
    else:
        _note(COMMANDS if name == "/help" else f"{name}: not known, or incomplete\n{COMMANDS}")


def _save(file: Path, messages: list[dict[str, str]]) -> None:
    row = json.dumps({"messages": messages}, ensure_ascii=False)
    try:
        with file.open("a", encoding="utf-8") as out:
            out.write(row + "\n")
    except OSError as error:  # the talk goes on
        _note(f"{file}: {error.strerror or error}")
    else:
        _note(f"{len(messages)} messages added to {file}")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _lines() -> Iterator[Iterator[str]]:
    """The lines that are typed, up to an empty one; edited and remembered on a terminal."""
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    save = _history() if terminal else None

    def lines() -> Iterator[str]:
        while True:
            try:
                line = _line(terminal).strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                _note("\n(an empty line or Ctrl-D ends the talk)")
                continue
            if not line:
                return
            yield line

    try:
        yield lines()
    finally:
        if save is not None:
            save()


def _line(terminal: bool) -> str:
    if terminal:
        return input("you> ")
    print("you> ", end="", flush=True, file=sys.stderr)
    return sys.stdin.readline()


def _history() -> Any:
    """Let `input` edit lines and bring back earlier ones; how to keep them, or ``None``."""
    try:
        import readline
    except ImportError:  # Windows edits lines by itself
        return None
    from graftlm.cache import cache_folder

    file = cache_folder() / "chat_history"
    with contextlib.suppress(OSError):  # there is none yet
        readline.read_history_file(file)

    def save() -> None:
        readline.set_history_length(MOST_LINES)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)
            file.chmod(0o600)
        except OSError as error:
            _note(f"the history is not kept: {error}")

    return save
