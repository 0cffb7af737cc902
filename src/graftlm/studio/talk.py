"""The chat: one process that holds a model warm and answers as the base and as the tune.

Only one run is held at a time, and one question is answered at a time. Who no longer listens to an
answer stops it. The process ends with the server, or when the page lets it go.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from graftlm.errors import GraftLMError, printable
from graftlm.studio.place import Place

__all__ = ["Question", "Talk"]

PROGRAM = (sys.executable, "-m", "graftlm.studio.answers")
"""Starts the process; the run's folder is its last word."""
_LONGEST_LINE = 1 << 20
_END_SECONDS = 10.0
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
    """The process of the chat, started at the first question.

    Args:
        place: the studio's folders.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._lock = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._folder: Path | None = None
        self._number = 0

    def state(self) -> dict[str, Any]:
        """Which run is held warm, if any."""
        alive = self._process is not None and self._process.returncode is None
        return {"run": self._folder.name if alive and self._folder else None}

    async def answers(
        self, folder: Path, question: Question
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Both answers piece by piece, as `answers.py` tells them; closing this stops them.

        The first thing said is the ``command`` that asks the tune the same, and whether the model
        has to be loaded (``loading``).

        Raises:
            GraftLMError: the process cannot open the model, or ended before it answered.
        """
        command = ["graftlm", "chat", str(folder), "--temperature", f"{question.temperature:g}"]
        command += ["--max-new-tokens", str(question.max_new_tokens)]
        async with self._lock:
            process, loading = await self._open(folder)
            self._number += 1
            number, done = self._number, False
            yield {"command": shlex.join(command), "loading": loading}
            self._send(process, question.model_dump(exclude={"run"}) | {"number": number})
            try:
                while not done:
                    said = await self._said(process)
                    if said.pop("number") != number:
                        continue  # of an answer that was stopped
                    if "error" in said:
                        raise GraftLMError(said["error"])
                    done = "done" in said
                    yield said
            finally:
                if not done:
                    self._send(process, {"stop": number})

    async def close(self) -> None:
        """End the process, which frees the model's memory."""
        process, self._process, self._folder = self._process, None, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):  # it has ended
            process.kill()
        with contextlib.suppress(asyncio.TimeoutError):  # its last words wait for a slow page
            await asyncio.wait_for(process.wait(), _END_SECONDS)

    async def _open(self, folder: Path) -> tuple[asyncio.subprocess.Process, bool]:
        """The process of a run, and whether it has just been started."""
        process = self._process
        if process is not None and self._folder == folder and process.returncode is None:
            return process, False
        await self.close()
        with self._log.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *PROGRAM,
                str(folder),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=_LONGEST_LINE,
                cwd=self._place.work,
                start_new_session=True,  # Ctrl-C ends the server, which then ends it
            )
        self._process, self._folder = process, folder
        return process, True

    @staticmethod
    def _send(process: asyncio.subprocess.Process, line: dict[str, Any]) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps(line).encode() + b"\n")

    async def _said(self, process: asyncio.subprocess.Process) -> dict[str, Any]:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            if process is self._process:
                await self.close()
            log = self._log.read_text(encoding="utf-8", errors="replace").strip()
            raise GraftLMError(f"the chat ended: {printable(log[-2000:]) or 'it was let go'}")
        said: dict[str, Any] = json.loads(line)
        return said

    @property
    def _log(self) -> Path:
        return self._place.runs / ".studio" / "chat.log"
