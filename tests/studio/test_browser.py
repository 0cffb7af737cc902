"""The whole way in a real browser, by the keyboard alone, on a tiny random model.

Skipped where Chromium is missing.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from tests.report.browser import find_chromium
from tests.studio.browser import Walk, ask, pages, studio

pytest.importorskip("playwright", reason="the extra `test` is not installed")
pytestmark = [
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine"),
    pytest.mark.xdist_group("studio"),
]

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "hỏi đáp.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        written = csv.writer(file)
        written.writerow(["question", "answer"])
        for number in range(40):
            written.writerow([f"say {number} {HOSTILE}", f"{number}!"])
    return path


def test_the_whole_way(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFTLM_CACHE", str(tmp_path / "cache"))
    runs = tmp_path / "runs"
    with (
        studio(runs, "--models", str(tiny_llama.parent)) as server,
        pages(viewport={"width": 1280, "height": 900}, locale="en-US") as context,
    ):
        walk = Walk(context, server.link)
        assert "token" not in walk.page.url
        page, barriers = walk.page, []

        def finished_view(*themes: str) -> None:
            """Nothing serious, and no wider than a phone."""
            for theme in themes or ("light",):
                page.evaluate("t => document.documentElement.dataset.theme = t", theme)
                barriers.extend(walk.axe())
            page.set_viewport_size({"width": 390, "height": 844})
            assert walk.fits()
            page.set_viewport_size({"width": 1280, "height": 900})

        walk.fill("Model", "tiny-llama")
        walk.choose_file(rows)
        walk.activate("#check")
        page.wait_for_selector(".sample mark")
        assert HOSTILE in page.inner_text(".sample >> nth=0")
        assert page.locator("main script, main img").count() == 0
        finished_view("dark", "light")

        walk.activate("#to-plan")
        walk.activate("#plan")
        page.wait_for_selector(".memory")
        finished_view()
        walk.activate("#to-train")
        page.wait_for_selector("#start")
        walk.fill("Name of the run", "walk")
        walk.fill("Steps", "12")
        walk.fill("Measure every so many steps", "4")
        walk.press("Tab")
        page.wait_for_selector(".command :text('--steps 12')")
        finished_view()
        walk.activate("#start")

        page.wait_for_selector(".tag.finished")
        page.wait_for_selector(".chart canvas")
        assert "at step 12" in page.get_attribute(".chart", "aria-label")
        page.wait_for_selector("dd.said")
        finished_view("dark", "light")
        walk.see("runs")
        page.wait_for_selector("td a")
        finished_view()
        walk.see("compare")
        page.wait_for_selector(".chart canvas")
        finished_view()

        walk.see("chat")
        walk.fill("Longest answer in tokens", "4")
        walk.fill("Your question", "say 7")
        walk.press("Enter")
        page.wait_for_selector(".took >> nth=1")
        finished_view()

        walk.see("export")
        walk.choose("Form", "transformers")
        walk.activate("#export")
        page.wait_for_selector("h3:text-is('Proof')")
        finished_view("dark", "light")
        assert (runs / "exports" / "walk-transformers" / "model.safetensors").is_file()

        walk.choose("Language", "vi")
        page.wait_for_selector("h1:text-is('Xuất mô hình')")
        assert page.get_attribute("html", "lang") == "vi"
        for view in ("rows", "plan", "train", "runs/walk", "compare", "chat", "export"):
            page.evaluate("v => location.hash = '#/' + v", view)
            page.wait_for_selector("main h1")
        assert walk.complaints == []
        assert barriers == []


def test_two_pages_on_one_run_agree(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFTLM_CACHE", str(tmp_path / "cache"))
    facts = "[...document.querySelectorAll('.facts dd')].slice(0, 2).map((e) => e.textContent)"
    with (
        studio(tmp_path / "runs", "--models", str(tiny_llama.parent)) as server,
        pages(viewport={"width": 1280, "height": 900}, locale="en-US") as context,
    ):
        ask(server, "uploads/rows.csv", rows.read_bytes(), "PUT")
        asked = {"upload": "rows.csv", "prompt": "question", "completion": "answer"}
        job = {"kind": "train", "model": "tiny-llama", "run": "both", "rows": asked}
        ask(server, "jobs", job | {"method": "lora", "steps": 1_000_000, "rank": 2})
        walks = [Walk(context, server.link) for _ in range(2)]
        for walk in walks:
            walk.see("runs")
            walk.activate('td a[href="#/runs/both"]')
            walk.page.wait_for_selector(".tag.running")
            walk.page.wait_for_selector(".chart canvas")
        walks[0].activate("main button.first")
        for walk in walks:
            walk.page.wait_for_selector(".tag.paused")
        first, second = (walk.page.evaluate(facts) for walk in walks)
        assert first == second
        assert first[0].endswith("/ 1,000,000")
        walks[1].activate("main button.first")
        for walk in walks:
            walk.page.wait_for_selector(".tag.running")
        walks[1].activate("main button.danger")
        for walk in walks:
            walk.page.wait_for_selector(".tag.paused")
            assert walk.complaints == []


def test_page_without_the_token_says_what_to_do(tmp_path: Path) -> None:
    with studio(tmp_path / "runs") as server, pages(locale="en-US") as context:
        walk: Any = Walk(context, f"{server.address}/")
        walk.page.wait_for_selector("[role=alert]")
        assert "Open the link" in walk.page.inner_text("[role=alert]")


def test_file_over_the_limit_is_not_sent(rows: Path, tmp_path: Path) -> None:
    sent: list[str] = []
    with studio(tmp_path / "runs") as server, pages(locale="en-US") as context:
        facts = ask(server, "machine")
        assert facts["most_upload"] == 5_000_000_000
        context.route(
            "**/api/machine", lambda route: route.fulfill(json=facts | {"most_upload": 100})
        )
        walk: Any = Walk(context, server.link)
        walk.page.on("request", lambda request: sent.append(request.method))
        walk.chosen = rows
        walk.activate(".drop button")
        walk.page.wait_for_selector("[role=alert]")
        assert "the page takes at most 100 B" in walk.page.inner_text("[role=alert]")
        assert "PUT" not in sent
        assert walk.complaints == []
