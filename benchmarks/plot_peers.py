"""The table of bench_peers.py as a picture: speed and peak memory of each run.

python benchmarks/bench_peers.py | tee peers.csv; python benchmarks/plot_peers.py peers.csv OUT.svg
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

from graftlm.report.svg import WIDTH, Bar, stacked_bars

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 } text.strong { font-weight: 600 }
.c0 { fill: #2a7f62 } .c1 { fill: #9aa4ae }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .c0 { fill: #4fb893 } }
"""
CHARTS = (
    ("tokens_per_second", "tokens per second, more is better", "{:.0f}"),
    ("peak_memory_gb", "peak resident memory, less is better", "{:.2f} GB"),
)
TITLE, GAP = 26, 14


def read(path: Path) -> tuple[str, list[dict[str, str]]]:
    """The comment line, and the rows of the table."""
    lines = path.read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if line.count(",") > 4 and not line.startswith("#")]
    return lines[0].lstrip("# "), list(csv.DictReader(table))


def picture(caption: str, rows: list[dict[str, str]]) -> str:
    """One SVG, the charts one below the other."""
    parts, top = [], 0
    for key, title, form in CHARTS:
        bars = [
            Bar(
                row["run"],
                [("", float(row[key]), 0 if row["run"].startswith("graftlm") else 1)],
                form.format(float(row[key])),
            )
            for row in rows
        ]
        chart = stacked_bars(title, bars)
        assert chart is not None, "the table has no rows"
        found = re.search(r'viewBox="0 0 \d+ (\d+)"', chart.svg)
        assert found is not None
        height = int(found.group(1))
        parts.append(f'<text class="strong" x="2" y="{top + 16}">{title}</text>')
        parts.append(
            chart.svg.replace(
                "<svg ", f'<svg y="{top + TITLE}" width="{WIDTH}" height="{height}" ', 1
            )
        )
        top += TITLE + height + GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" '
        f'role="img" aria-label="{caption}"><style>{STYLE}</style>{"".join(parts)}</svg>\n'
    )


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(picture(*read(source)), encoding="utf-8")


if __name__ == "__main__":
    main()
