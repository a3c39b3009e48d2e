"""Figures of labelled points."""

from __future__ import annotations

from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from lowrank.report.context import Context, figure
from lowrank.report.figures import bars_of, sheet
from lowrank.report.frame import groups, need_columns, select
from lowrank.report.kinds import Scatter
from lowrank.report.style import MUTED, SETTINGS, in_order, looks
from lowrank.report.text import number

SIDES = (
    ((1, 0), "left", "center"),
    ((0, 1), "center", "bottom"),
    ((0, -1), "center", "top"),
    ((-1, 0), "right", "center"),
    ((0.7, 0.7), "left", "bottom"),
    ((0.7, -0.7), "left", "top"),
    ((-0.7, 0.7), "right", "bottom"),
    ((-0.7, -0.7), "right", "top"),
)
"""Where a label may stand around its point, in the order of preference."""

MARKER = 5
"""Half the width of a point, in pixels."""

DISTANCES = (8, 20, 32, 44, 56, 68)
"""How far off, in points; a label that does not stand beside its point has a line to it."""


@figure(Scatter)
def scatter(context: Context, name: str) -> Figure:
    """One point per row, named beside it; bars are its intervals."""
    view, place = context.figure_view(Scatter, name)
    table = context.table(view.table)
    need_columns(table, [view.x, view.y, *view.series, *view.label], place)
    parts = in_order(groups(select(table, view.where, place), view.series))
    with matplotlib.rc_context(SETTINGS):
        drawing, axes = sheet(view)
        axes.margins(0.14)
        points: list[tuple[float, float, str, str]] = []
        for (_, rows), look in zip(parts, looks([keys for keys, _ in parts], context.views.titles), strict=True):
            there = rows[rows[view.x].notna() & rows[view.y].notna()]
            if there.empty:
                continue
            axes.errorbar(there[view.x], there[view.y], xerr=bars_of(there, view.x), yerr=bars_of(there, view.y),
                          fmt="none", ecolor=look.colour, elinewidth=1, capsize=2, alpha=0.7)  # fmt: skip
            axes.plot(there[view.x], there[view.y], look.marker, color=look.colour, markersize=8, linestyle="none",
                      gid=f"points {look.label}")  # fmt: skip
            for _, row in there.iterrows():
                points.append((float(row[view.x]), float(row[view.y]), _words(row, view, context), look.colour))
        if not points:
            axes.text(0.5, 0.5, "no run has finished", transform=axes.transAxes, ha="center", color=MUTED)
        _labels(drawing, axes, points)
    return drawing


def _words(row: pd.Series[Any], view: Scatter, context: Context) -> str:
    words = [context.views.titles.get(str(row[column]), number(row[column])) for column in view.label]
    return ", ".join(word for word in words if word != "–")


def _labels(drawing: Figure, axes: Axes, points: list[tuple[float, float, str, str]]) -> None:
    """Each label at the nearest place where it covers no point, interval or other label, if there is one."""
    drawing.draw_without_rendering()
    to_pixels = axes.transData.transform
    taken = [Bbox([to_pixels((x, y))] * 2).padded(MARKER) for x, y, _, _ in points]
    bars = [bars for bars in axes.collections if isinstance(bars, LineCollection)]
    taken += [Bbox(to_pixels(segment)).padded(1) for one in bars for segment in one.get_segments()]
    places = [(distance, side) for distance in DISTANCES for side in SIDES]
    for x, y, text, colour in sorted(points, key=lambda point: -point[1]):
        for distance, ((right, up), across, along) in places:
            off = (right * distance, up * distance)
            written = axes.annotate(text, (x, y), xytext=off, textcoords="offset points", ha=across, va=along,
                                    fontsize="small", color=colour)  # fmt: skip
            box = written.get_window_extent()
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= drawing.bbox.x1
            inside &= axes.bbox.y0 <= box.y0 and box.y1 <= drawing.bbox.y1
            if (inside and not any(box.overlaps(other) for other in taken)) or (
                distance,
                ((right, up), across, along),
            ) == places[-1]:
                break
            written.remove()
        taken.append(box)
        if distance > DISTANCES[0]:
            axes.annotate("", (x, y), xytext=off, textcoords="offset points",
                          arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.7})  # fmt: skip
