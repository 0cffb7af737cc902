"""Charts are well-formed, escaped, and inside their frame."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from graftlm.report.svg import HEIGHT, WIDTH, Bar, Series, line_chart, stacked_bars

SVG = "{http://www.w3.org/2000/svg}"


def test_curves_stay_inside_the_frame() -> None:
    points = [(float(step), 1e3 / (step + 1) - 7) for step in range(50)]
    chart = line_chart("loss", [Series("one", points, 0, "dots"), Series("", [(3, 2)], 1)])
    assert chart is not None
    assert [name for name, _, _ in chart.legend] == ["one"]
    tree = ElementTree.fromstring(chart.svg)
    dots = tree.findall(f"{SVG}circle")
    assert len(dots) == 51  # a curve of one point would not be seen without a dot
    for dot in dots:
        assert 0 <= float(dot.attrib["cx"]) <= WIDTH
        assert 0 <= float(dot.attrib["cy"]) <= HEIGHT


def test_nothing_to_draw_is_no_chart() -> None:
    assert line_chart("loss", [Series("empty", [])]) is None
    assert stacked_bars("memory", []) is None


def test_bars_are_as_long_as_their_values_and_text_is_escaped() -> None:
    parts = [("<a>", 1.0, 0), ("b", 3.0, 1)]
    chart = stacked_bars("<memory>", [Bar("<x>", parts, mark=8.0), Bar("y", parts)])
    assert chart is not None
    tree = ElementTree.fromstring(chart.svg)
    widths = [float(rect.attrib["width"]) for rect in tree.findall(f"{SVG}rect")]
    assert widths[1] / widths[0] == 3.0
    assert sum(widths[:2]) < WIDTH * 0.51  # the mark is at twice the sum
    assert [name for name, _, _ in chart.legend] == ["<a>", "b"]
