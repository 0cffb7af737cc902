"""The chat: one process that holds a model warm and answers as the base and as the tune.

Only one run is held at a time. The process ends with the server, or when the page lets it go.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from graftlm.errors import GraftLMError, printable
from graftlm.studio.place import Place

__all__ = ["Question", "Talk"]

_Text = Annotated[str, pydantic.StringConstraints(max_length=100_000)]


class Turn(pydantic.BaseModel):
    """One message of a conversation."""

    role: Literal["user", "assistant"]
    content: _Text


class Question(pydantic.BaseModel):
    """A conversation for each side, ended by the user's message.

    The two sides have the same questions and different answers.
    """

    model_config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)

    run: _Text
    base: Annotated[list[Turn], pydantic.Field(min_length=1, max_length=200)]
    tuned: Annotated[list[Turn], pydantic.Field(min_length=1, max_length=200)]
    max_new_tokens: int = pydantic.Field(120, ge=1, le=4096)
    temperature: float = pydantic.Field(0.0, ge=0, le=10)
    seed: int = pydantic.Field(0, ge=0, lt=2**31)


class Talk:
    """The process of the chat, started at the first question."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._folder: Path | None = None

    def state(self) -> dict[str, Any]:
        """Which run is held warm, if any."""
        alive = self._process is not None and self._process.poll() is None
        return {"run": self._folder.name if alive and self._folder else None}

    def ask(self, folder: Path, question: Question) -> dict[str, Any]:
        """Both answers, and the command that asks the tune the same.

        Raises:
            GraftLMError: the process cannot open the model, or ended before it answered.
        """
        command = ["graftlm", "chat", str(folder), "--temperature", f"{question.temperature:g}"]
        command += ["--max-new-tokens", str(question.max_new_tokens)]
        with self._lock:
            self._open(folder)
            answer = self._exchange(question.model_dump_json(exclude={"run"}))
        return answer | {"command": shlex.join(command)}

    def close(self) -> None:
        """End the process, which frees the model's memory."""
        process, self._process, self._folder = self._process, None, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _open(self, folder: Path) -> None:
        if self.state()["run"] is not None and self._folder == folder:
            return
        self.close()
        self._folder = folder
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "graftlm.studio.answers", str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                cwd=self._place.work,
                start_new_session=True,  # Ctrl-C ends the server, which then ends it
            )

    def _exchange(self, line: str) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        said = ""
        with contextlib.suppress(BrokenPipeError, ValueError):  # it has ended; the log says why
            process.stdin.write(line + "\n")
            process.stdin.flush()
            said = process.stdout.readline()
        if not said:
            self.close()
            log = self._log.read_text(encoding="utf-8", errors="replace").strip()
            raise GraftLMError(f"the chat ended: {printable(log[-2000:]) or 'it was let go'}")
        answer: dict[str, Any] = json.loads(said)
        if "error" in answer:
            raise GraftLMError(answer["error"])
        return answer

    @property
    def _log(self) -> Path:
        return self._place.runs / ".studio" / "chat.log"
