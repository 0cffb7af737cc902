"""Headless Chromium, spoken to over a pipe in its own protocol: no further package is needed.

Chromium reads commands from file descriptor 3 and answers on 4, each message ended by a zero byte.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_MOVE = """
import fcntl, os, sys
high = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
os.dup2(high[0], 3), os.dup2(high[1], 4), os.execv(sys.argv[3], sys.argv[3:])
"""
"""Puts the pipes where Chromium expects them; a shell's redirections end at descriptor 9."""
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_chromium() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One tab. `complaints` gathers console errors and exceptions."""

    def __init__(self, to: int, answers: int) -> None:
        self._to, self._answers, self._rest, self._last = to, answers, b"", 0
        self._session: str | None = None
        self.complaints: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._last:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, page: Path, width: int, dark: bool = False, height: int = 900) -> None:
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url=page.absolute().as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, expression: str) -> Any:
        asked = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        return asked["result"].get("value")

    def screenshot(self, path: Path) -> None:
        data = self.ask("Page.captureScreenshot", captureBeyondViewport=True, format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._answers, 1 << 20)
            assert piece, "the browser went away"
            self._rest += piece
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        errors = {
            "Runtime.exceptionThrown": True,
            "Runtime.consoleAPICalled": params.get("type") == "error",
            "Log.entryAdded": params.get("entry", {}).get("level") == "error",
            "Network.requestWillBeSent": params.get("request", {})
            .get("url", "")
            .startswith("http"),
        }
        if errors.get(str(method)):
            self.complaints.append(json.dumps(params))


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser for the duration of the block, with a profile of its own."""
    program = find_chromium()
    assert program
    inbox, to = os.pipe()
    answers, outbox = os.pipe()
    command = [
        sys.executable, "-S", "-c", _MOVE, str(inbox), str(outbox), program, "--headless=new",
        "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--hide-scrollbars",
        "--disable-background-networking", "--no-first-run", f"--user-data-dir={profile}",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, pass_fds=(inbox, outbox), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(inbox)
    os.close(outbox)
    try:
        yield Browser(to, answers)
    finally:
        os.close(to)  # Chromium leaves when its pipe closes
        os.close(answers)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
