"""Draws `docs/images/nf4-levels.svg`: weights in blocks of 64, and the sixteen levels of NF4.

python docs/nf4_picture.py
"""

from __future__ import annotations

from pathlib import Path

import torch

from graftlm.kernels.nf4.codebook import nf4_levels

WIDTH, HEIGHT, BARS = 720, 240, 120
STYLE = """text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.w { fill: #9aa4ae } .l { stroke: #2a7f62; stroke-width: 2 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .l { stroke: #4fb893 } }"""


def picture() -> str:
    """The SVG: a histogram of normal weights over their block's largest, and a line a level."""
    draw = torch.randn(20_000, 64, generator=torch.Generator().manual_seed(0))
    scaled = (draw / draw.abs().amax(1, keepdim=True)).flatten()
    counts = torch.histc(scaled, BARS, -1, 1)
    counts[0] = counts[-1] = 0  # each block's largest weight lies there, by definition
    heights = (counts / counts.max() * (HEIGHT - 60)).tolist()
    bar = WIDTH / BARS
    parts = [
        f'<rect class="w" x="{i * bar:.1f}" y="{HEIGHT - 40 - h:.1f}" width="{bar - 1:.1f}" '
        f'height="{h:.1f}"/>'
        for i, h in enumerate(heights)
    ]
    for level in nf4_levels():
        x = (float(level) + 1) / 2 * WIDTH
        parts.append(f'<line class="l" x1="{x:.1f}" x2="{x:.1f}" y1="8" y2="{HEIGHT - 32}"/>')
    parts += [
        f'<text x="0" y="{HEIGHT - 12}">-1: the largest of its block</text>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">0</text>',
        f'<text x="{WIDTH}" y="{HEIGHT - 12}" text-anchor="end">+1</text>',
    ]
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="Weights are dense around zero, and so are the levels">\n'
        f"<style>{STYLE}</style>\n{body}\n</svg>\n"
    )


if __name__ == "__main__":
    target = Path(__file__).parent / "images" / "nf4-levels.svg"
    target.write_text(picture(), encoding="utf-8")
    print(f"wrote {target.name}")
