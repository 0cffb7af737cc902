"""`graftlm.generate`: answers to prompts and conversations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, overload

from graftlm.api.opening import in_llama_cpp, run_named
from graftlm.data import render_prompt, stop_tokens
from graftlm.data.prompt_format import format_in
from graftlm.errors import ConfigError
from graftlm.models.decoding.choice import Sampling
from graftlm.models.decoding.row import Ask
from graftlm.models.decoding.whole import writer_for
from graftlm.models.generate import Answer
from graftlm.serve.llama import LlamaWriter

if TYPE_CHECKING:
    from typing_extensions import TypedDict, Unpack

    from graftlm.models.llama_cpp import LlamaCpp
    from graftlm.serve.engine import Writer

    class Asked(TypedDict, total=False):
        """The keywords of `generate`."""

        tokenizer: Any
        adapter: str | None
        quantize: str | None
        device: str
        format: Layout
        tools: Sequence[dict[str, Any]] | None
        max_new_tokens: int
        temperature: float
        top_p: float
        seed: int


__all__ = ["Layout", "Opened", "Prompt", "generate", "require_layout"]

Layout = Literal["auto", "chat", "plain"]
Message = dict[str, Any]
Prompt = Union[str, Sequence[Message]]  # noqa: UP007 - evaluated on Python 3.10
"""A text, or the messages of a conversation."""


def require_layout(asked: str) -> None:
    """Refuse a form of a prompt that there is not, before a model is loaded for it."""
    if asked not in get_args(Layout):
        raise ConfigError(f"format {asked!r}: expected auto, chat or plain")


class Opened:
    """A model that answers: by graftlm, or by llama.cpp for a GGUF file.

    Args:
        model: the name of a model, a run or adapter folder, a GGUF file, or a loaded model.
        adapter: a PEFT adapter folder, a run folder, or a GGUF file for llama.cpp.
        quantize: the weight format of the base, ``none`` for as it is; by default as the adapter
            was trained.
        device: where a model that is named shall run.
        tokenizer: that of a loaded model.

    Attributes:
        writer: continues rows of tokens.
        plain: whether a prompt is plain text rather than a turn of a conversation.
        stop: the tokens that end an answer, besides the model's own.
    """

    writer: Writer

    def __init__(
        self,
        model: Any,
        adapter: str | None = None,
        quantize: str | None = None,
        device: str = "auto",
        tokenizer: Any = None,
    ) -> None:
        self._llama: LlamaCpp | None = None
        model = str(model) if isinstance(model, Path) else model
        if not isinstance(model, str):
            if tokenizer is None:
                raise ConfigError("a model in hand needs its tokenizer: generate(…, tokenizer=…)")
            loaded, self._tokenizer = model, tokenizer
        else:
            self._llama = in_llama_cpp(model, adapter, quantize)
        if self._llama is not None:
            self.writer, self.plain = LlamaWriter(self._llama), self._llama.plain
            self.stop: frozenset[int] = frozenset()
            return
        if isinstance(model, str):
            from graftlm.adapters.open_model import open_model

            loaded, self._tokenizer = open_model(*run_named(model, adapter), quantize, device)
        template = self._tokenizer.chat_template
        self.plain = not template or format_in(template) is not None
        self.stop = frozenset(stop_tokens(self._tokenizer))
        self.writer = writer_for(loaded, self._tokenizer)

    def layout(self, asked: str = "auto") -> Layout:
        """The form of a prompt: what was ``asked`` for, or the one that the model was trained in.

        Raises:
            ConfigError: there is no such form.
        """
        require_layout(asked)
        plain = self.plain if asked == "auto" else asked == "plain"
        return "plain" if plain else "chat"

    def tokens(self, prompt: Prompt, layout: Layout = "auto", tools: Any = None) -> tuple[int, ...]:
        """The tokens of ``prompt``, as in the training.

        Raises:
            DataError: the chat template refuses, or there is none.
        """
        if isinstance(prompt, str):
            chat = self.layout(layout) == "chat"
            asked = [{"role": "user", "content": prompt}] if chat else prompt
        else:
            asked = [dict(message) for message in prompt]
        if self._llama is not None:
            return tuple(self._llama.prompt(asked, tools))
        return tuple(render_prompt(asked, self._tokenizer, tools=tools))


@overload
def generate(model: Any, prompt: str, **asked: Unpack[Asked]) -> Answer: ...
@overload
def generate(model: Any, prompt: Sequence[Message], **asked: Unpack[Asked]) -> Answer: ...
@overload
def generate(model: Any, prompt: Sequence[Prompt], **asked: Unpack[Asked]) -> list[Answer]: ...


def generate(
    model: Any,
    prompt: Prompt | Sequence[Prompt],
    *,
    tokenizer: Any = None,
    adapter: str | None = None,
    quantize: str | None = None,
    device: str = "auto",
    format: Layout = "auto",
    tools: Sequence[dict[str, Any]] | None = None,
    max_new_tokens: int = 200,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Answer | list[Answer]:
    """Answer a prompt, or several at once, as `graftlm generate` does.

    Args:
        model: the name of a model, a run folder, an adapter folder or a GGUF file; or a loaded
            model, which is not loaded again for each call.
        prompt: a text, or the messages of a conversation (dicts with ``role`` and ``content``); a
            list of texts or of conversations is answered in batches.
        tokenizer: that of a loaded model.
        adapter: a PEFT adapter folder or a run folder.
        quantize: hold the base in a weight format, or as it is (``none``); by default as the
            adapter was trained.
        device: where a model that is named shall run.
        format: of a text: ``chat``, a turn of the chat template; ``plain``, as it is; ``auto``, as
            the model was trained.
        tools: JSON schemas of functions, for a template that takes them.
        max_new_tokens: the longest answer.
        temperature: 0 takes the most probable token each time.
        top_p: only tokens of this much probability in sum.
        seed: for a temperature above 0; prompt n has seed + n.

    Returns:
        The answer (``text``, ``tokens``, ``stopped``); for a list, the list of answers.

    Raises:
        DataError: a prompt leaves no room for an answer, or the template refuses it.
        ConfigError: there is no such ``format``.
        ModelError: the model cannot be opened.
    """
    require_layout(format)
    alone = isinstance(prompt, str) or (len(prompt) > 0 and isinstance(prompt[0], dict))
    prompts: Sequence[Any] = [prompt] if alone else prompt
    opened = Opened(model, adapter, quantize, device, tokenizer)
    training = not isinstance(model, str | Path) and bool(model.training)
    if training:
        model.train(False)
    try:
        rows = [
            opened.writer.add(
                Ask(
                    opened.tokens(one, format, tools),
                    max_new_tokens,
                    Sampling(temperature, top_p, seed + number),
                    opened.stop,
                )
            )
            for number, one in enumerate(prompts)
        ]
        while any(row.reason is None for row in rows):
            opened.writer.step()
        for row in rows:
            if row.error is not None:
                raise row.error
    finally:
        opened.writer.close()
        if training:
            model.train()
    answers = [Answer(row.text, row.tokens, row.reason == "stop", tuple(row.new)) for row in rows]
    return answers[0] if alone else answers
