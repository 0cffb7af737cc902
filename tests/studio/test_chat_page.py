"""The page of the chat: words as they come, what is read out, and a stop; by the keyboard alone.

Skipped where Chromium is missing.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from tests.report.browser import find_chromium
from tests.studio.browser import Walk, ask, pages, studio, until

pytest.importorskip("playwright", reason="the extra `test` is not installed")
pytestmark = [
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine"),
    pytest.mark.xdist_group("studio"),
]

WATCH = """() => {
  window.seen = [];
  window.said = [];
  const main = document.getElementById("main"), status = document.getElementById("status");
  new MutationObserver(() => window.seen.push([
    [...document.querySelectorAll(".turn.assistant")].map((one) => one.textContent),
    document.querySelectorAll(".took").length,
  ])).observe(main, { subtree: true, childList: true, characterData: true });
  new MutationObserver(() => window.said.push(status.textContent))
    .observe(status, { childList: true });
}"""
BUSY = ".sides [aria-busy=true]"


def send(walk: Walk, tokens: int, text: str) -> None:
    walk.fill("Longest answer in tokens", str(tokens))
    walk.fill("Your question", text)
    walk.press("Enter")


def taken(page: Any, number: int) -> str:
    """What stands below the answer of this number, first of the base and then of the tune."""
    found: str = page.inner_text(
        f".sides section >> nth={number % 2} >> .took >> nth={number // 2}"
    )
    return found


def test_words_appear_as_they_come_and_can_be_stopped(
    letters_llama: Path,
    rows_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GRAFTLM_CACHE", str(tmp_path / "cache"))
    with (
        studio(tmp_path / "runs", "--models", str(letters_llama.parent)) as server,
        pages(viewport={"width": 1280, "height": 900}, locale="en-US") as context,
    ):
        ask(server, "uploads/rows.jsonl", rows_file.read_bytes(), "PUT")
        rows = {"upload": "rows.jsonl", "format": "plain", "eval_fraction": 0}
        job = {"kind": "train", "model": "letters", "run": "short", "rows": rows}
        ask(server, "jobs", job | {"method": "lora", "steps": 1, "rank": 2})
        until(lambda: ask(server, "jobs")[0]["state"] == "done")
        walk = Walk(context, server.link)
        page = walk.page
        walk.see("chat")
        page.evaluate(WATCH)

        send(walk, 60, "say <b>7</b>")
        page.wait_for_selector(".took >> nth=1")
        seen = page.evaluate("window.seen")
        growing = [texts for texts, ended in seen if ended == 0]
        for side in (0, 1):
            texts = [one[side] for one in growing if len(one) == 2]
            assert len(set(texts)) > 10  # neither answer waited for its end, or for the other
            assert all(after.startswith(before) for before, after in itertools.pairwise(texts))
        answers = page.locator(".turn.assistant").all_inner_texts()
        assert [len(one) for one in answers] == [60, 60]
        assert page.locator(".turn.user").all_inner_texts() == ["say <b>7</b>"] * 2
        said = page.evaluate("window.said")
        assert said[0] == "The models answer…"
        assert said[1:] == [f" Base: {answers[0]}\nTuned: {answers[1]}"]
        assert page.evaluate("document.activeElement.tagName") == "TEXTAREA"
        assert walk.axe() == []

        send(walk, 4096, "and on")
        page.wait_for_selector(".turn.writing >> nth=1")
        assert page.locator("#send").is_disabled()
        assert walk.axe() == []
        walk.activate("#stop")
        page.wait_for_selector(".took >> nth=3")
        assert (taken(page, 2), taken(page, 3)) == ("Stopped.", "Stopped.")
        assert page.evaluate("document.activeElement.tagName") == "TEXTAREA"
        assert page.locator(BUSY).count() == 0
        assert page.locator("#stop").is_hidden()

        send(walk, 4096, "once more")
        page.wait_for_selector(".turn.writing >> nth=1")
        walk.press("Escape")
        page.wait_for_selector(".took >> nth=5")
        assert (taken(page, 4), taken(page, 5)) == ("Stopped.", "Stopped.")

        send(walk, 4096, "left alone")  # another view stops the answers, too
        page.wait_for_selector(".turn.writing >> nth=1")
        walk.see("runs")
        walk.see("chat")
        send(walk, 4, "new")
        page.wait_for_selector(".took >> nth=1")
        assert [len(one) for one in page.locator(".turn.assistant").all_inner_texts()] == [4, 4]
        assert ask(server, "chat") == {"run": "short"}
        assert walk.complaints == []
