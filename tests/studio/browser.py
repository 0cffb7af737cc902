"""The studio in headless Chromium, driven by Playwright; by the keyboard alone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.report.browser import find_chromium

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
AXE = Path(__file__).parent / "axe" / "axe.min.js"


class Server:
    """`graftlm studio` as a process."""

    def __init__(self, runs: Path, *more: str, port: int = 0) -> None:
        command = [sys.executable, "-m", "graftlm", "studio", "--runs", str(runs), "--json"]
        self.process = subprocess.Popen(
            [*command, "--port", str(port), *more], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the studio did not start"
        self.link = str(json.loads(line)["url"])
        self.address, _, self.token = self.link.partition("/#token=")
        self.port = int(self.address.rpartition(":")[2])

    def end(self, number: int = signal.SIGTERM) -> None:
        assert self.process.stdout is not None
        self.process.send_signal(number)
        self.process.wait(20)
        self.process.stdout.close()


def ask(server: Server, path: str, body: Any = None, method: str | None = None) -> Any:
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    headers = {"authorization": f"Bearer {server.token}", "content-type": "application/json"}
    request = urllib.request.Request(
        f"{server.address}/api/{path}", data=data, headers=headers, method=method
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@contextlib.contextmanager
def studio(runs: Path, *more: str) -> Iterator[Server]:
    server = Server(runs, *more)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.end()


@contextlib.contextmanager
def pages(**options: Any) -> Iterator[Any]:
    """A browser context with a profile of its own."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as profile, sync_playwright() as playwright:
        opened = playwright.chromium.launch_persistent_context(
            profile, executable_path=find_chromium(), args=FLAGS, **options
        )
        try:
            yield opened
        finally:
            opened.close()


class Walk:
    """One page, used as by somebody without a mouse. `complaints` gathers what the console says."""

    def __init__(self, context: Any, link: str) -> None:
        self.page = context.new_page()
        self.page.set_default_timeout(float(os.environ.get("STUDIO_TIMEOUT", "240")) * 1000)
        self.complaints: list[str] = []
        self.keys = 0
        self.page.on("console", lambda m: m.type == "error" and self.complaints.append(m.text))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("dialog", lambda d: (self.complaints.append(d.message), d.dismiss()))
        self.chosen: Path | None = None
        self.page.on("filechooser", lambda dialog: dialog.set_files(self.chosen))
        self.page.goto(link)
        self.page.wait_for_selector("h1, [role=alert]")

    def press(self, key: str) -> None:
        self.keys += 1
        self.page.keyboard.press(key)

    def reach(self, selector: str) -> None:
        """Press Tab until the element has the focus."""
        self.page.wait_for_selector(selector, state="attached")
        for _ in range(150):
            if self.page.evaluate("s => !!document.activeElement?.matches(s)", selector):
                return
            self.press("Tab")
        raise AssertionError(f"no key leads to {selector}")

    def activate(self, selector: str) -> None:
        self.reach(selector)
        self.press("Enter")

    def fill(self, label: str, text: str) -> None:
        field = self.page.get_by_label(label, exact=True)
        self.reach(f"#{field.get_attribute('id')}")
        self.press("Control+a")
        self.page.keyboard.type(text)
        self.keys += len(text)

    def see(self, view: str) -> None:
        self.activate(f'nav a[href="#/{view}"]')
        self.page.wait_for_url(f"**/#/{view}")
        self.page.wait_for_selector("main h1")

    def choose_file(self, path: Path) -> None:
        """Enter opens the system's dialog, which is not part of the page: its answer is given."""
        self.chosen = path
        self.activate(".drop button")
        self.page.wait_for_selector("#check")

    def choose(self, label: str, value: str) -> None:
        """Go through a list with the arrow keys until it holds the value."""
        field = self.page.get_by_label(label, exact=True)
        self.reach(f"#{field.get_attribute('id')}")
        self.press("Home")
        for _ in range(20):
            if self.page.evaluate("document.activeElement.value") == value:
                return
            self.press("ArrowDown")
        raise AssertionError(f"no key leads to {value} in {label}")

    def axe(self) -> list[str]:
        """What axe-core finds that is serious or critical. The page's policy stays as it is."""
        self.page.evaluate(AXE.read_text(encoding="utf-8"))
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{one['id']}: {node['target']} {node['failureSummary']}"
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"]
        ]

    def fits(self) -> bool:
        """Whether the page is no wider than the window."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def until(what: Any, seconds: float = 60.0) -> Any:
    """The first true value of ``what()``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.2)
    raise AssertionError("waited in vain")
