"""Small curves as SVG, drawn without matplotlib: a site has a page for each of hundreds of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lowrank.report.html import escape
from lowrank.report.text import number

WIDTH, HEIGHT = 560, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 96, 12, 34

Points = Sequence[tuple[float, float]]


def curves_svg(series: Mapping[str, Points], x_label: str, label: str) -> str:
    """Lines over a common x, named at their ends; an empty string where there is nothing to draw.

    Args:
        series: name -> (x, y) points in order; values that are not finite are left out.
        x_label: below the axis.
        label: read aloud in place of the drawing.
    """
    lines = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return ""
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    low, high = min(ys), max(ys)
    margin = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - margin, high + margin
    left, right = min(xs), max(max(xs), min(xs) + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT)
        return across, TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [_grid(y, place(left, y)[1]) for y in ticks(low, high)]
    floor = HEIGHT - BOTTOM
    parts += [_text(place(x, low)[0], floor + 16, number(float(x)), "middle") for x in sorted({left, right})]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, floor + 30, x_label, "middle"))
    names = []
    for index, (name, points) in enumerate(lines.items()):
        shown = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        parts.append(f'<polyline points="{shown}" fill="none" stroke="var(--series-{4 * index})" stroke-width="1.6"/>')
        if len(points) < 30:
            spots = [place(*point) for point in points]
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="var(--series-{4 * index})"/>' for x, y in spots]
        names.append((place(*points[-1])[1], name, index))
    heights = sorted(names)
    for position, (y, name, index) in enumerate(heights):
        above = heights[position - 1][0] if position else -math.inf
        y = max(y, above + 14)
        heights[position] = (y, name, index)
        parts.append(_text(WIDTH - RIGHT + 6, y + 4, name, "start", f"var(--series-{4 * index})"))
    opening = f'<svg class="spark" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
    return f"{opening}{''.join(parts)}</svg>"


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round values inside a range: steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step)
    return [index * step for index in range(first, math.floor(high / step) + 1)]


def _grid(value: float, y: float) -> str:
    line = f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--rule)"/>'
    return line + _text(LEFT - 6, y + 4, f"{value:.4g}", "end")


def _text(x: float, y: float, text: str, anchor: str, colour: str = "var(--muted)") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
