"""Figures of labelled points."""

from __future__ import annotations

import itertools
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lowrank.report.context import Context, figure
from lowrank.report.figures import bars_of, sheet
from lowrank.report.frame import groups, need_columns, select
from lowrank.report.kinds import Scatter
from lowrank.report.style import MUTED, SETTINGS, in_order, looks
from lowrank.report.text import number

PLACES = (
    ((7, 0), "left", "center"),
    ((0, 8), "center", "bottom"),
    ((0, -8), "center", "top"),
    ((-7, 0), "right", "center"),
)
"""Where a label may stand around its point, in the order of preference."""


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
    """Each label at the first place where it covers neither a point nor another label."""
    drawing.draw_without_rendering()
    taken = [axes.transData.transform((x, y)) for x, y, _, _ in points]
    boxes: list[Any] = []
    for x, y, text, colour in sorted(points, key=lambda point: -point[1]):
        for (offset, across, up), last in zip(PLACES, itertools.chain([False] * (len(PLACES) - 1), [True])):
            written = axes.annotate(text, (x, y), xytext=offset, textcoords="offset points", ha=across, va=up,
                                    fontsize="small", color=colour)  # fmt: skip
            box = written.get_window_extent()
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= drawing.bbox.x1
            free = not any(box.overlaps(other) for other in boxes) and not any(box.contains(*point) for point in taken)
            if (inside and free) or last:
                boxes.append(box)
                break
            written.remove()
