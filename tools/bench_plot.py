"""Draws what was measured of datastores over their size as SVG, a panel for each row, without any library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench_rows import Row

COLUMNS, WIDTH, HEIGHT, MARGIN = 4, 320, 170, 34
LINE, BAR = "#1f6feb", "#d29922"


def write_plot(path: Path, by_size: Mapping[int, Sequence[Row]]) -> None:
    """Writes every row over the number of tokens, which is on a logarithmic scale; bars are dashed lines."""
    sizes = sorted(by_size)
    panels = [
        _panel(sizes, [by_size[size][index] for size in sizes], index)
        for index in range(len(by_size[sizes[0]]))
    ]
    height = -(-len(panels) // COLUMNS) * HEIGHT
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{COLUMNS * WIDTH}" height="{height}" font-size="10">'
    )
    path.write_text("\n".join([head, *panels, "</svg>\n"]))


def _panel(sizes: Sequence[int], rows: Sequence[Row], index: int) -> str:
    top = 1.1 * max(max(row.value, row.bar or 0.0) for row in rows) or 1.0
    span = max(math.log(sizes[-1] / sizes[0]), 1e-9)
    at_x = [MARGIN + math.log(size / sizes[0]) / span * (WIDTH - 2 * MARGIN) for size in sizes]
    name = rows[0].what.partition(": ")[2]
    parts = [_text(WIDTH / 2, 14, f"{name}, {rows[0].unit}", "#000")]
    parts += [_text(x, HEIGHT - 14, f"{size / 1e6:g}M") for x, size in zip(at_x, sizes, strict=True)]
    parts += [_text(MARGIN / 2, _y(part * top, top), f"{part * top:.3g}") for part in (0.0, 0.5, 1.0)]
    parts.append(_line(at_x, [row.value for row in rows], top, LINE))
    if all(row.bar is not None for row in rows):
        parts.append(_line(at_x, [row.bar or 0.0 for row in rows], top, f'{BAR}" stroke-dasharray="4'))
    x, y = index % COLUMNS * WIDTH, index // COLUMNS * HEIGHT
    return f'<g transform="translate({x},{y})">\n' + "\n".join(parts) + "\n</g>"


def _line(at_x: Sequence[float], values: Sequence[float], top: float, stroke: str) -> str:
    points = " ".join(f"{x:.1f},{_y(value, top):.1f}" for x, value in zip(at_x, values, strict=True))
    return f'<polyline points="{points}" fill="none" stroke="{stroke}"/>'


def _y(value: float, top: float) -> float:
    return HEIGHT - MARGIN - value / top * (HEIGHT - 2 * MARGIN)


def _text(x: float, y: float, text: str, colour: str = "#666") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" fill="{colour}" text-anchor="middle">{text}</text>'
