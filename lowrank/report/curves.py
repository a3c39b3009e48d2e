"""Figures of quantities over steps."""

from __future__ import annotations

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lowrank.report.context import Context, figure
from lowrank.report.figures import height_grid, name_ends, padded, sheet
from lowrank.report.frame import groups, need_columns, select
from lowrank.report.kinds import Course, Curves
from lowrank.report.style import SETTINGS, Look, in_order, looks


@figure(Curves)
def curves(context: Context, name: str) -> Figure:
    """One line per series: the mean over seeds and its band; where the table smooths, the raw mean stands behind.

    A series of which seeds are missing says so in its name.
    """
    view, place = context.figure_view(Curves, name)
    course = context.views.tables[view.table]
    assert isinstance(course, Course)  # parse_views has seen to it
    table = context.table(view.table)
    need_columns(table, list(view.series), place)
    parts = in_order(groups(select(table, view.where, place), view.series))
    with matplotlib.rc_context(SETTINGS):
        drawing, axes = sheet(view)
        height_grid(axes, view.log_y)
        ends = []
        for (_, rows), look in zip(parts, looks([keys for keys, _ in parts], context.views.titles), strict=True):
            end = _curve(axes, course, rows[rows[course.tag].notna()].sort_values("step"), look)
            if end is not None:
                ends.append((end, _named(look, rows)))
        _heights(axes, [rows[course.tag] for _, rows in parts], view.log_y)
        name_ends(axes, ends)
    return drawing


def _heights(axes: Axes, means: list[pd.Series[float]], log: bool) -> None:
    """Limits from the means: a wide band of few seeds runs off the axes rather than flatten every curve."""
    values = [float(value) for mean in means for value in mean.dropna()]
    if values:
        axes.set_ylim(*padded(values, log))


def _named(look: Look, rows: pd.DataFrame) -> Look:
    seeds, planned = int(rows["seeds"].max()), int(rows["seeds_planned"].max())
    label = look.label if seeds == planned else f"{look.label} ({seeds} of {planned} seeds)"
    return Look(label, look.colour, "", look.dash)


def _curve(axes: Axes, course: Course, rows: pd.DataFrame, look: Look) -> tuple[float, float] | None:
    if rows.empty:
        return None
    steps, mean = rows["step"], rows[course.tag]
    main = rows["smoothed"] if course.smoothing else mean
    if course.smoothing:
        axes.plot(steps, mean, "-", color=look.colour, linewidth=0.8, alpha=0.3, gid=f"raw {look.label}")
    else:
        low, high = rows[f"{course.tag}_low"], rows[f"{course.tag}_high"]
        if low.notna().any():
            axes.fill_between(steps, low, high, color=look.colour, alpha=0.15, linewidth=0, gid=f"band {look.label}")
    axes.plot(steps, main, linestyle=look.dash, color=look.colour, linewidth=1.7, gid=f"line {look.label}",
              label=look.label)  # fmt: skip
    return float(steps.iloc[-1]), float(main.iloc[-1])
