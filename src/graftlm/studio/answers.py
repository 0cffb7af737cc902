"""The process of the chat: opens one run and answers as its base and as the tune.

    python -m graftlm.studio.answers RUN

Each line of stdin is a question as JSON, each line of stdout its two answers. The base is the same
model with its adapters switched off, so it costs no memory; a full fine-tune has its base loaded
beside it. The process ends when stdin closes.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from graftlm.adapters import disable_adapters
from graftlm.adapters.adapter_folder import base_of
from graftlm.adapters.open_model import open_model
from graftlm.data import render_prompt, stop_tokens
from graftlm.data.prompt_format import format_in
from graftlm.errors import GraftLMError
from graftlm.models import generate_text
from graftlm.training.run_folder import result_folder

__all__ = ["main"]


class Pair:
    """A run's tune and its base."""

    def __init__(self, run: Path) -> None:
        whole = result_folder(run, "full")
        self._full = whole.is_dir()
        if self._full:
            self._tuned, self._tokenizer = open_model(str(whole), None, None, "auto")
            base = json.loads((run / "summary.json").read_text(encoding="utf-8"))["model"]
            self._base, _ = open_model(base, None, None, "auto")
        else:
            self._tuned, self._tokenizer = open_model(base_of(run), str(run), None, "auto")
            self._base = self._tuned
        self._plain = format_in(self._tokenizer.chat_template) is not None

    def answers(self, question: dict[str, Any]) -> dict[str, Any]:
        """The text, tokens and seconds of both."""
        off = contextlib.nullcontext() if self._full else disable_adapters(self._base)
        with off:
            base = self._answer(self._base, question, "base")
        return {"base": base, "tuned": self._answer(self._tuned, question, "tuned")}

    def _answer(self, model: Any, question: dict[str, Any], side: str) -> dict[str, Any]:
        turns = question[side]
        # A model that was trained on plain prompts is asked each message by itself.
        asked = turns[-1]["content"] if self._plain else turns
        started = time.perf_counter()
        answer = generate_text(
            model,
            self._tokenizer,
            [render_prompt(asked, self._tokenizer)],
            max_new_tokens=question["max_new_tokens"],
            temperature=question["temperature"],
            seed=question["seed"],
            stop=stop_tokens(self._tokenizer),
        )[0]
        seconds = time.perf_counter() - started
        return {"text": answer.text, "tokens": answer.tokens, "seconds": seconds}


def main(run: Path) -> None:
    """Answer until stdin closes."""
    # Libraries may print: their output goes to stderr, and the answers to the pipe alone.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as pipe:
        os.dup2(2, 1)
        pair: Pair | None = None
        for line in sys.stdin:
            try:
                pair = pair or Pair(run)
                said = pair.answers(json.loads(line))
            except GraftLMError as error:
                said = {"error": str(error)}
            pipe.write(json.dumps(said) + "\n")
            pipe.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
