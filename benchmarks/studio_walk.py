"""The studio's whole way on Gemma-3-270M in headless Chromium, with screenshots and figures.

    python benchmarks/studio_walk.py [--images docs/images] [--steps 12]

A new user's way on the Vietnamese page: a CSV of questions and answers → check → plan → training →
comparison → chat → Ollama's form. Prints the minutes, clicks and keys of it, then visits each view
for the screenshots: 1280 and 390 px, light and dark, English and Vietnamese.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.studio.browser import Walk, pages, studio

DISHES = ("phở", "bún chả", "bánh mì", "cà phê sữa", "chè")
CITIES = ("Hà Nội", "Huế", "Đà Nẵng", "Sài Gòn")
PROOF = "studio-proof-vi-light-1280.png"
VIEWS = ("rows", "plan", "train", "runs/don-hang", "compare", "chat", "export")


def write_rows(path: Path, count: int = 60) -> None:
    draw = random.Random(1)
    with path.open("w", newline="", encoding="utf-8") as file:
        written = csv.writer(file)
        written.writerow(["câu hỏi", "trả lời"])
        for _ in range(count):
            number, dish, city = draw.randint(1, 9), draw.choice(DISHES), draw.choice(CITIES)
            record = {"món": dish, "số": number, "nơi": city}
            said = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
            written.writerow([f"Cho tôi {number} {dish} giao đến {city}", said])


class User(Walk):
    """Uses the mouse and counts the clicks."""

    clicks = 0

    def click(self, selector: str) -> None:
        self.clicks += 1
        self.page.click(selector)

    def type(self, label: str, text: str) -> None:
        self.clicks += 1
        self.page.get_by_label(label, exact=True).fill(text)
        self.keys += len(text)


def way(user: User, rows: Path, steps: int) -> dict[str, float]:
    """The new user's way; seconds until each stage was reached."""
    page, started, at = user.page, time.monotonic(), {}

    def reached(stage: str) -> None:
        at[stage] = round(time.monotonic() - started, 1)
        print(f"{stage:<12} {at[stage]:8.1f} s  {user.clicks} clicks", flush=True)

    user.clicks += 1  # on the button; the system's dialog is not part of the page
    page.set_input_files(".drop input", rows)
    page.wait_for_selector("#check")
    user.click("#check")
    page.wait_for_selector(".sample mark")
    reached("checked")
    user.click("#to-plan")
    user.click("#plan")
    page.wait_for_selector("#to-train")
    reached("planned")
    user.click("#to-train")
    page.wait_for_selector("#start")
    user.type("Tên lần chạy", "don-hang")
    user.type("Số bước", str(steps))
    user.type("Đo sau mỗi số bước", str(max(1, steps // 3)))
    user.click("#start")
    page.wait_for_selector(".chart canvas")
    reached("live curve")
    page.wait_for_selector(".tag.finished")
    reached("trained")
    page.wait_for_selector("dd.said")
    user.click("#to-chat")
    user.type("Câu hỏi của bạn", "Cho tôi 4 phở giao đến Huế")
    user.click("#send")
    page.wait_for_selector(".took >> nth=1")
    reached("answered")
    user.click('nav a[href="#/export"]')
    page.wait_for_selector("#export")
    user.click("#export")
    page.wait_for_selector("h3:text-is('Bằng chứng')")
    reached("exported")
    return at


def pictures(context: Any, link: str, images: Path) -> None:
    """Each view in each language, theme and width; WebP-free, so that every viewer opens them."""
    walk = Walk(context, link)
    page = walk.page
    wanted = {
        ("en", "light", 1280): VIEWS, ("vi", "light", 1280): ("rows", "runs/don-hang"),
        ("en", "dark", 1280): ("plan", "runs/don-hang", "chat"),
        ("vi", "dark", 390): ("rows", "runs/don-hang"), ("en", "light", 390): ("plan", "chat"),
    }  # fmt: skip
    for (language, theme, width), views in wanted.items():
        page.set_viewport_size({"width": width, "height": 900})
        draft = "graftlm-studio-draft"
        page.evaluate(
            "([k, d]) => localStorage.setItem(k, JSON.stringify("
            "{...JSON.parse(localStorage.getItem(k) ?? '{}'), ...d}))",
            [draft, {"language": language, "theme": theme}],
        )
        for view in views:
            page.goto(f"{link.partition('#')[0]}#/{view}")
            page.reload()
            page.wait_for_selector("main h1")
            page.wait_for_timeout(2500)
            if view == "chat":
                page.locator("input[type=number]").first.fill("24")
                page.fill("textarea", "Cho tôi 4 phở giao đến Huế")
                page.click("#send")
                page.wait_for_selector(".took >> nth=1")
            name = f"studio-{view.partition('/')[0]}-{language}-{theme}-{width}.png"
            page.screenshot(path=images / name, full_page=True)
            assert walk.fits(), name
    assert walk.complaints == [], walk.complaints


def squeeze(images: Path) -> int:
    """Fewer colours: the pictures are flat. Returns their bytes."""
    from PIL import Image

    size = 0
    for path in sorted(images.glob("studio-*.png")):
        Image.open(path).convert("RGB").quantize(48, dither=Image.Dither.NONE).save(
            path, optimize=True
        )
        size += path.stat().st_size
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, default=Path("docs/images"))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--runs", type=Path, help="keep the runs folder here")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "don-hang.csv"
        write_rows(rows)
        runs = asked.runs or Path(folder) / "runs"
        with (
            studio(runs) as server,
            pages(viewport={"width": 1280, "height": 900}, locale="vi-VN") as context,
        ):
            user = User(context, server.link)
            way(user, rows, asked.steps)
            user.page.screenshot(path=asked.images / PROOF, full_page=True)
            print(f"{user.clicks} clicks, {user.keys} keys; console: {user.complaints}")
            pictures(context, server.link, asked.images)
    print(f"pictures: {squeeze(asked.images) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
