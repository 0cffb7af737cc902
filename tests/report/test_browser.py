"""The pages in a real browser: phone and desktop, light and dark.

Skipped only where no Chromium is found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from graftlm.config import RunConfig
from graftlm.report.compare.api import OUTSIDE, Comparison
from graftlm.report.compare.figures import figures_of
from graftlm.report.compare.page import write_comparison
from graftlm.report.compare.variants import Variant, jobs
from graftlm.report.compare.verdict import verdict
from graftlm.report.run_page import write_run_page
from tests.report.browser import Browser, chromium, find_chromium
from tests.report.conftest import MakeRun

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine")

PLANNED = {"framework": 400, "weights": 500, "optimizer": 300, "activations": 200, "temporary": 90}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def comparison(make_run: MakeRun, tmp_path: Path) -> Path:
    """A comparison with more columns than a phone is wide, and with long names."""
    columns = [
        Variant("full", None, True),
        *(Variant(method, rank, True) for method in ("lora", "qlora") for rank in (8, 512)),
    ]
    work, runs = [], []
    for job in jobs(RunConfig(), columns, 1, Path()):
        folder = make_run(f"cmp/runs/{job.variant.folder}", method=job.variant.method)
        config = job.config.model_copy(update={"out": str(folder)})
        work.append(dataclasses.replace(job, config=config))
        measured = {"train_loss": 1.0, "outside_before": 3.0, "outside_after": 3.2}
        planned = {name: size * 1_000_000 for name, size in PLANNED.items()}
        runs.append({**measured, "artifact_bytes": 9_000_000, "planned": planned})
        write_run_page(folder)
    summary = {
        "steps": 40, "tokens": 4000, "peak_memory_bytes": 1_500_000_000, "wall_seconds": 9.0,
        "trainable_parameters": 1000, "eval_loss_before": 2.1, "eval_loss_after": 1.11,
    }  # fmt: skip
    figures = tuple(figures_of(v, [(summary, run)]) for v, run in zip(columns, runs, strict=True))
    rate = RunConfig.model_validate({"train": {"learning_rate": 2e-4}})
    found = Comparison(
        rate, figures, tuple(work), tuple(verdict(figures)), OUTSIDE, tmp_path / "cmp"
    )
    return write_comparison(found)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_fit_and_draw_without_complaint(
    width: int, dark: bool, browser: Browser, comparison: Path, make_run: MakeRun
) -> None:
    for page in (comparison, write_run_page(make_run("a-run-" + "with-a-long-name-" * 6))):
        browser.complaints.clear()
        browser.open(page, width, dark)
        assert browser.evaluate("innerWidth") == width
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        sizes = browser.evaluate(
            "[...document.querySelectorAll('figure > svg')]"
            ".map(s => { const r = s.getBoundingClientRect(); return [r.width, r.height] })"
        )
        assert len(sizes) == 4
        assert all(wide > 300 and high > 100 for wide, high in sizes)
        smallest = browser.evaluate(
            "Math.min(...[...document.querySelectorAll('svg text')]"
            ".map(t => t.getBoundingClientRect().height))"
        )
        assert smallest >= 10  # readable
        assert browser.complaints == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out_from_the_page(dark: bool, browser: Browser, make_run: MakeRun) -> None:
    """Contrast of at least 4.5 to 1, for soft text too (WCAG AA)."""
    browser.open(write_run_page(make_run()), 390, dark)
    luminance = (
        "(c => { const v = c.match(/[0-9.]+/g).slice(0, 3).map(x => x / 255)"
        ".map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);"
        "return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2] })"
    )
    page = browser.evaluate(f"{luminance}(getComputedStyle(document.body).backgroundColor)")
    assert (page < 0.1) == dark
    for chosen, property_ in (("body", "color"), (".soft", "color"), ("svg text", "fill")):
        style = f"getComputedStyle(document.querySelector('{chosen}')).{property_}"
        ink = browser.evaluate(f"{luminance}({style})")
        assert (max(ink, page) + 0.05) / (min(ink, page) + 0.05) >= 4.5
