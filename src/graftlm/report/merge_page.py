"""A merge as one page: each candidate beside the live adapter, and where their layers differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graftlm.files import atomic_write
from graftlm.report.page import render
from graftlm.report.svg import Bar, Chart, Series, line_chart, stacked_bars

__all__ = ["merge_page", "write_merge_page"]


def write_merge_page(report: Mapping[str, Any], folder: Path) -> Path:
    """Write `merge_report.html` beside `merge_report.json`; return its path."""
    path = folder / "merge_report.html"
    with atomic_write(path) as temporary:
        temporary.write_text(merge_page(report), encoding="utf-8")
    return path


def merge_page(report: Mapping[str, Any]) -> str:
    """The page's HTML.

    Args:
        report: as `graftlm.exporting.measured_merge.measured_merge` returns it.
    """
    candidates, proof = report["candidates"], report["proof"]
    rows = report["rows"]
    return render(
        "merge.html",
        name=Path(report["out"]).name,
        heading=f"{report['chosen']} keeps {report['kept']:.1%} of the tune",
        lead=f"Compared with the live adapter on {rows['count']:,} rows from {rows['measured']}. "
        "Losses are in nats per supervised token.",
        facts=[
            ("base", Path(report["base"]).name),
            ("loss of the base", f"{report['base_loss']:.4f}"),
            ("loss of the live adapter", f"{report['live_loss']:.4f}"),
            ("tensors applied", f"{proof['tensors_applied']} of {proof['tensors_expected']}"),
            ("opened again, away by", f"{proof['distance']:.1e} of the effect"),
            ("size", f"{report['bytes'] / 1e9:.2f} GB"),
        ],
        rows=[
            (
                one["kind"],
                f"{one['loss']:.4f}",
                f"{one['kl']:.5f}",
                f"{one['agreement']:.1%}",
                f"{one['kept']:.1%}",
                one["kind"] == report["chosen"],
            )
            for one in candidates
        ],
        charts=_charts(report),
    )


def _charts(report: Mapping[str, Any]) -> list[Chart]:
    candidates = report["candidates"]
    bars = [
        Bar(one["kind"], [("kept", max(0.0, one["kept"]), index)], f"{one['kept']:.1%}", 1.0)
        for index, one in enumerate(candidates)
    ]
    curves = [
        Series(one["kind"], list(enumerate(one["layers"].values())), index)
        for index, one in enumerate(candidates)
    ]
    charts = (
        stacked_bars("Share of the tune that is kept; the line is the live adapter", bars),
        line_chart(
            "Relative error after each decoder layer", curves, x_label="layer", from_zero=True
        ),
    )
    return [chart for chart in charts if chart is not None]
