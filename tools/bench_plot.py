"""Draws draft times by the size of a datastore as SVG, without any library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench_rows import Row

WIDTH, HEIGHT, MARGIN = 640, 400, 60
LINES = {
    "64-node draft, p50": "#1f6feb",
    "64-node draft, p99": "#d29922",
    "16-node draft with the call, nothing in the caches, p50": "#8250df",
}


def write_plot(path: Path, by_size: Mapping[int, Sequence[Row]]) -> None:
    """Writes one line for each kind of draft over the number of tokens, which is on a logarithmic scale."""
    sizes = sorted(by_size)
    values = {name: [_value(by_size[size], name) for size in sizes] for name in LINES}
    top = 1.1 * max(max(line) for line in values.values())
    span = max(math.log(sizes[-1] / sizes[0]), 1e-9)
    at_x = [MARGIN + math.log(size / sizes[0]) / span * (WIDTH - 2 * MARGIN) for size in sizes]
    parts = [_text(x, HEIGHT - MARGIN / 2, f"{size / 1e6:g}M") for x, size in zip(at_x, sizes, strict=True)]
    parts += [_text(MARGIN / 2, _y(top * step / 4, top), f"{top * step / 4:.0f} us") for step in range(5)]
    for index, (name, colour) in enumerate(LINES.items()):
        points = " ".join(f"{x:.1f},{_y(y, top):.1f}" for x, y in zip(at_x, values[name], strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(_text(WIDTH / 2, 16 + 16 * index, name, colour))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-size="12">'
    path.write_text("\n".join([head, *parts, "</svg>\n"]))


def _value(rows: Sequence[Row], name: str) -> float:
    return next(row.value for row in rows if f": {name}" in row.what)


def _y(value: float, top: float) -> float:
    return HEIGHT - MARGIN - value / top * (HEIGHT - 2 * MARGIN)


def _text(x: float, y: float, text: str, colour: str = "#444") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" fill="{colour}" text-anchor="middle">{text}</text>'
