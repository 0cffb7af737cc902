"""The process of the chat: opens one run and answers as its base and as the tune.

    python -m graftlm.studio.answers RUN

    stdin     {"number": 1, "base": [turns], "tuned": [turns], …}     a question
              {"stop": 1}                                             stop its answers
    stdout    {"number": 1, "side": "base", "text": "Hel"}            a piece of an answer
              {"number": 1, "side": "base", "reason": "stop", "tokens": 9, "seconds": 1.2}
              {"number": 1, "done": true}                             both are complete
              {"number": 1, "error": "…"}                             there will be no more

Each is a line of JSON. The process ends when stdin closes.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from graftlm.errors import GraftLMError
from graftlm.serve.engine import Piece
from graftlm.studio.sides import Side, open_sides

__all__ = ["Answering", "main"]

Tell = Callable[[dict[str, Any]], None]


class Answering:
    """The answers to one question on their way.

    Args:
        sides: who answers.
        question: the conversation of each side, and how to answer.
        tell: is called with each line, in the threads of the engines.

    Raises:
        GraftLMError: a side cannot be asked this; neither is.
    """

    def __init__(self, sides: Mapping[str, Side], question: Mapping[str, Any], tell: Tell) -> None:
        self.number: int = question["number"]
        self._tell = tell
        self._left = len(sides)
        self._lock = threading.Lock()
        self._began = time.perf_counter()
        self._in_turn = any(side.in_turn for side in sides.values())
        asks = {name: side.ask(question[name], question) for name, side in sides.items()}
        self._cancel = [
            side.engine.submit(asks[name], functools.partial(self._deliver, name))
            for name, side in sides.items()
        ]

    def stop(self) -> None:
        """Stop what is not complete; nothing more is told of it."""
        for cancel in self._cancel:
            cancel()

    def _deliver(self, name: str, piece: Piece) -> None:
        if piece.error is not None:
            self._say(error=_reason(piece.error))
            return
        if piece.text:
            self._say(side=name, text=piece.text)
        if piece.reason is not None:
            now = time.perf_counter()
            with self._lock:
                seconds = now - self._began
                self._began = now if self._in_turn else self._began
            self._say(side=name, reason=piece.reason, tokens=piece.tokens, seconds=seconds)
            with self._lock:
                self._left -= 1
                done = self._left == 0
            if done:
                self._say(done=True)

    def _say(self, **line: Any) -> None:
        self._tell({"number": self.number, **line})


def _reason(error: Exception) -> str:
    if isinstance(error, GraftLMError):
        return str(error)
    return f"the answer could not be written: {type(error).__name__}: {error}"


def main(run: Path) -> None:
    """Answer until stdin closes."""
    # Libraries may print: their output goes to stderr, and the answers to the pipe alone.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as pipe:
        os.dup2(2, 1)
        lock = threading.Lock()

        def tell(line: dict[str, Any]) -> None:
            with lock:
                pipe.write(json.dumps(line) + "\n")
                pipe.flush()

        sides: dict[str, Side] = {}
        answering: Answering | None = None
        for line in sys.stdin:
            asked = json.loads(line)
            if "stop" in asked:
                if answering is not None and answering.number == asked["stop"]:
                    answering.stop()
                continue
            try:
                sides = sides or open_sides(run)
                answering = Answering(sides, asked, tell)
            except GraftLMError as error:
                tell({"number": asked["number"], "error": str(error)})
        if answering is not None:
            answering.stop()
        for engine in {side.engine for side in sides.values()}:
            engine.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
