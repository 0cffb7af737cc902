"""A GGUF file run by llama.cpp, where the package `llama-cpp-python` is installed.

Prompts have the form that the file's chat template records, as everywhere in graftlm. Text is cut
into tokens by llama.cpp itself, so that an answer here is the answer of every program that uses it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graftlm.config import DataConfig
from graftlm.data.prompt_format import PromptFormat, format_in
from graftlm.data.rendering import in_bounds
from graftlm.errors import DataError, GraftLMError, ModelError
from graftlm.models.decoding.constraint import Constraint, only
from graftlm.models.generate import Answer

__all__ = ["NOT_INSTALLED", "LlamaCpp", "installed"]

NOT_INSTALLED = "llama-cpp-python is not installed: pip install 'graftlm[llama-cpp]'"


def installed() -> bool:
    """Whether llama.cpp can be called."""
    return importlib.util.find_spec("llama_cpp") is not None


class LlamaCpp:
    """A model in llama.cpp.

    Args:
        file: the GGUF file of a whole model.
        adapter: a GGUF file of an adapter.
        context: room for so many tokens; at most the model's own.
        every_logit: keep the logits of every position, for `logits`.

    Raises:
        ModelError: llama-cpp-python is not installed, or llama.cpp refuses a file.
    """

    def __init__(
        self,
        file: Path,
        adapter: Path | None = None,
        context: int = 4096,
        every_logit: bool = False,
    ) -> None:
        if not installed():
            raise ModelError(NOT_INSTALLED)
        import llama_cpp

        self.context = max(64, context)
        try:
            self._model: Any = llama_cpp.Llama(
                str(file),
                lora_path=None if adapter is None else str(adapter),
                n_ctx=self.context,
                n_batch=min(self.context, 512),
                n_threads=torch.get_num_threads(),
                n_threads_batch=torch.get_num_threads(),
                logits_all=every_logit,
                verbose=False,
            )
        except (ValueError, RuntimeError, OSError) as error:
            beside = "" if adapter is None else f" with the adapter {adapter}"
            raise ModelError(
                f"llama.cpp refuses {file}{beside}: {error}. The file may be cut off or of another "
                "architecture; an adapter fits only a file of its own base."
            ) from error

    @property
    def template(self) -> str | None:
        """The file's chat template."""
        found: str | None = self._model.metadata.get("tokenizer.chat_template")
        return found

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return int(self._model.n_vocab())

    @property
    def plain(self) -> bool:
        """Whether a prompt is plain text, as the template records or because there is none."""
        return self.template is None or format_in(self.template) is not None

    def tokens(self, text: str, special: bool = False, begin: bool = True) -> list[int]:
        """The tokens of ``text``.

        Args:
            text: any text.
            special: whether the text of a special token becomes that token.
            begin: put the tokens before it that the file asks for.
        """
        adds = self._model.metadata.get("tokenizer.ggml.add_bos_token", "true") == "true"
        found: list[int] = self._model.tokenize(text.encode(), begin and adds, special)
        return found

    def prompt(self, asked: str | Sequence[dict[str, Any]], tools: Any = None) -> list[int]:
        """The tokens of a prompt: of plain text in its recorded form, or of messages.

        Args:
            asked: the text or the messages.
            tools: JSON schemas of functions, for a template that takes them.

        Raises:
            DataError: the template refuses the messages.
        """
        if isinstance(asked, str):
            form = format_in(self.template) or PromptFormat("plain", DataConfig().separator)
            return self.tokens(asked + form.separator if asked else "")
        text = self._rendered(list(asked), tools)
        begin = self._text_of(self._model.token_bos())
        return self.tokens(text.removeprefix(begin), special=True, begin=text.startswith(begin))

    def answer(
        self, ids: list[int], max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> Answer:
        """Continue the tokens ``ids``.

        Raises:
            DataError: the prompt leaves no room for an answer.
        """
        if len(ids) >= self.context:
            raise DataError(
                f"the prompt has {len(ids):,} tokens; there is room for {self.context:,} with the "
                "answer"
            )
        found = self._continued(ids, max_new_tokens, temperature, seed)
        stopped = bool(found) and self.ends(found[-1])
        said = found[:-1] if stopped else found
        text: bytes = self._model.detokenize(said, prev_tokens=ids) if said else b""
        return Answer(text.decode(errors="replace"), len(found), stopped, tuple(said))

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """The most probable next tokens, at most ``count``, until one that ends a text."""
        return self._continued(ids, count, 0.0, 0)

    def _continued(self, ids: list[int], count: int, temperature: float, seed: int) -> list[int]:
        self._model.reset()
        found: list[int] = []
        for token in self.continued(ids, temperature, seed=seed):
            found.append(token)
            if self.ends(token) or len(found) == min(count, self.context - len(ids)):
                break
        return found

    def continued(
        self,
        ids: list[int],
        temperature: float,
        top_p: float = 1.0,
        seed: int = 0,
        constraint: Constraint | None = None,
    ) -> Iterator[int]:
        """Tokens that follow ``ids``, without end; llama.cpp keeps the beginning it has read."""
        self._model.set_seed(seed % 2**32)

        def constrained(read: Any, logits: Any) -> Any:
            assert constraint is not None
            return only(torch.from_numpy(logits), constraint.allowed()).numpy()

        for token in self._model.generate(
            ids,
            temp=temperature,
            top_k=0,
            top_p=top_p,
            min_p=0.0,
            repeat_penalty=1.0,
            logits_processor=None if constraint is None else [constrained],
        ):
            if constraint is not None:
                constraint.take(int(token))
            yield int(token)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of some tokens, as a tokenizer of transformers gives it."""
        text: bytes = self._model.detokenize(list(ids), special=not skip_special_tokens)
        return text.decode(errors="replace")

    @property
    def words(self) -> Any:
        """The vocabulary, for llama.cpp's own functions."""
        import llama_cpp

        return llama_cpp.llama_model_get_vocab(self._model.model)

    def ends(self, token: int) -> bool:
        """Whether a token ends a text or a turn."""
        import llama_cpp

        return bool(llama_cpp.llama_vocab_is_eog(self.words, token))

    def logits(self, ids: list[int]) -> Tensor:
        """The logits at each position of ``ids``, (length, vocabulary)."""
        self._model.reset()
        self._model.eval(ids)
        return torch.from_numpy(self._model.scores[: len(ids)].copy()).float()

    def close(self) -> None:
        """Free the model's memory."""
        self._model.close()

    def _rendered(self, messages: list[dict[str, Any]], tools: Any) -> str:
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        if self.template is None:
            raise DataError("the file has no chat template: ask with --format plain")
        end, begin = (
            self._text_of(token) for token in (self._model.token_eos(), self._model.token_bos())
        )
        shape = Jinja2ChatFormatter(self.template, eos_token=end, bos_token=begin)
        try:
            with in_bounds("the file's own"):
                text: str = shape(messages=messages, tools=tools).prompt
        except GraftLMError:
            raise
        except Exception as error:  # templates refuse by exceptions of their own
            raise DataError(f"the chat template refuses: {error}") from error
        return text

    def _text_of(self, token: int) -> str:
        if token < 0:
            return ""
        text: bytes = self._model.detokenize([token], special=True)
        return text.decode(errors="replace")
