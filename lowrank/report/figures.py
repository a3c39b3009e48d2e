"""The kinds of figures: each draws the rows of one table and computes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import ScaledTranslation, Transform

from lowrank.report.context import Context, figure
from lowrank.report.frame import groups, need_columns, select
from lowrank.report.kinds import Curves, Lines, Scatter
from lowrank.report.style import INK, MUTED, PAPER, SETTINGS, Look, in_order, looks
from lowrank.report.text import number, rate

ROW_CHARACTERS, MARGIN_CHARACTERS = 64, 24
"""Letters of a legend's row, and of a name beside the axes."""

SIZE = (5.6, 4.0)
"""Inches; read at full width on a phone, two beside each other on a page."""


@figure(Lines)
def lines(context: Context, name: str) -> Figure:
    """A line with markers per series.

    Hollow markers are optima tied with their runner-up (or seen with one seed), a ring is an optimum at
    the edge of its grid, a cross on the axis a cell without a value.
    """
    view, place = context.figure_view(Lines, name)
    table = context.table(view.table)
    need_columns(table, [view.x, view.y, *view.series], place)
    table = select(table, view.where, place)
    reference = select(table, view.reference, place) if view.reference else table.iloc[:0]
    parts = in_order(groups(table.drop(reference.index), view.series))
    with matplotlib.rc_context(SETTINGS):
        drawing, axes = sheet(view)
        _scales(axes, view, table.drop(reference.index), reference)
        references = _guides(axes, view, reference, context.views.titles)
        ends = []
        for index, ((_, rows), look) in enumerate(zip(parts, looks([keys for keys, _ in parts], context.views.titles))):
            shift = (index - (len(parts) - 1) / 2) * view.dodge
            transform = axes.transData + ScaledTranslation(shift / 72, 0, drawing.dpi_scale_trans)
            ends.append((_series(axes, view, rows.sort_values(view.x), look, transform), look))
        _name_series(axes, view, [(end, look) for end, look in ends if end is not None], references)
    return drawing


def sheet(view: Lines | Curves | Scatter) -> tuple[Figure, Axes]:
    """An empty figure with the names and the scales of its axes."""
    drawing = Figure(figsize=SIZE, layout="constrained")
    axes = drawing.add_subplot()
    axes.set_xlabel(view.x_label)
    axes.set_ylabel(view.y_label)
    if view.log_x:
        axes.set_xscale("log")
    if view.log_y:
        axes.set_yscale("log")
    for axis, column in ((axes.xaxis, getattr(view, "x", "")), (axes.yaxis, getattr(view, "y", ""))):
        if column.endswith("_bytes"):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e6:g}"))
            axis.set_label_text(f"{axis.get_label_text()} (MB)")
    return drawing, axes


def height_grid(axes: Axes, log_y: bool) -> None:
    """Of a line the height is read, so only that has grid lines; on a log scale they stand at 1, 2 and 5."""
    axes.grid(visible=False, axis="x")
    if log_y:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.3g}"))


def _scales(axes: Axes, view: Lines, table: pd.DataFrame, reference: pd.DataFrame) -> None:
    height_grid(axes, view.log_y)
    shown = sorted(float(x) for x in table[view.x].dropna().unique())
    if view.log_x and shown and len(shown) <= 9:
        axes.xaxis.set_major_locator(FixedLocator(shown))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: rate(x)))
    if shown:  # every planned cell has its place, those without a value too
        axes.set_xlim(*padded(shown, view.log_x))
    columns = [column for column in (view.y, f"{view.y}_low", f"{view.y}_high") if column in table]
    heights = [float(y) for column in columns for y in [*table[column].dropna(), *reference[column].dropna()]]
    if heights or view.guides:
        axes.set_ylim(*padded([*heights, *view.guides], view.log_y))


def padded(values: list[float], log: bool) -> tuple[float, float]:
    """Limits with a margin of 6 % of the range; of 10 % of the value where all are the same."""
    low, high = min(values), max(values)
    if log:
        factor = (high / low) ** 0.06 if high > low else 1.1
        return low / factor, high * factor
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def _guides(axes: Axes, view: Lines, reference: pd.DataFrame, titles: Mapping[str, str]) -> list[Look]:
    """Thin lines at the values the document names; dashed ones at the reference rows, which are returned."""
    found: list[Look] = []
    for guide in view.guides:
        axes.axhline(guide, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
    if view.guides:
        axes.yaxis.set_major_locator(FixedLocator(list(view.guides)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{number(y)}×"))
    for _, row in reference[reference[view.y].notna()].iterrows():
        axes.axhline(row[view.y], color=INK, linewidth=1.4, linestyle="--", gid="reference")
        label = f"{titles.get(row['arm'], row['arm'])} {row[view.y]:.4g}"
        found.append(Look(label, INK, "", "--"))
    return found


def _series(
    axes: Axes, view: Lines, rows: pd.DataFrame, look: Look, transform: Transform
) -> tuple[float, float] | None:
    there, gone = rows[rows[view.y].notna()], rows[rows[view.y].isna() & rows[view.x].notna()]
    if len(gone):
        axes.plot(gone[view.x], [0.02] * len(gone), "x", color=look.colour, markersize=6, clip_on=False,
                  transform=axes.get_xaxis_transform(), gid="missing")  # fmt: skip
    if there.empty:
        return None
    axes.plot(there[view.x], there[view.y], linestyle=look.dash, color=look.colour, linewidth=1.6, transform=transform,
              gid=f"line {look.label}", label=look.label)  # fmt: skip
    bars = bars_of(there, view.y)
    if bars is not None:
        axes.errorbar(there[view.x], there[view.y], yerr=bars, fmt="none", ecolor=look.colour, elinewidth=1,
                      capsize=2.5, alpha=0.7, transform=transform)  # fmt: skip
    hollow = _flag(there, "tie", ("yes", "one seed"))
    for flagged, face in ((~hollow, look.colour), (hollow, PAPER)):
        axes.plot(there[view.x][flagged], there[view.y][flagged], look.marker, color=look.colour, linestyle="none",
                  markersize=6, markerfacecolor=face, markeredgewidth=1.5, transform=transform)  # fmt: skip
    edge = _flag(there, "edge", ("low", "high", "low and high"))
    axes.plot(there[view.x][edge], there[view.y][edge], "o", color=MUTED, markersize=12, markerfacecolor="none",
              markeredgewidth=1, transform=transform)  # fmt: skip
    last = there.iloc[-1]
    return float(last[view.x]), float(last[view.y])


def bars_of(rows: pd.DataFrame, column: str) -> list[Any] | None:
    """The lengths of the bars down and up; None where the table has no interval."""
    low, high = f"{column}_low", f"{column}_high"
    if low not in rows or rows[[low, high]].isna().all(axis=None):
        return None
    # An end that the grid leaves open has no bar on that side.
    return [(rows[column] - rows[low]).fillna(0).to_numpy(float), (rows[high] - rows[column]).fillna(0).to_numpy(float)]


def _flag(rows: pd.DataFrame, column: str, values: tuple[str, ...]) -> pd.Series[bool]:
    return rows[column].isin(values) if column in rows else pd.Series(False, index=rows.index)


def _name_series(axes: Axes, view: Lines, ends: list[tuple[tuple[float, float], Look]], references: list[Look]) -> None:
    """Names at the lines' ends; a legend where they would be far from their lines, or where a reference has one."""
    if ends and (view.dodge or references):
        legend(axes, [look for _, look in ends] + references)
    else:
        name_ends(axes, ends)


def legend(axes: Axes, named: list[Look]) -> None:
    """A legend above the axes, as many in a row as fit."""
    handles = [
        axes.plot([], [], linestyle=look.dash, marker=look.marker, color=look.colour, markersize=6)[0] for look in named
    ]
    columns = row_of([look.label for look in named])
    axes.legend(handles, [look.label for look in named], loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns,
                fontsize="small", handlelength=1.8, columnspacing=1.2)  # fmt: skip


def row_of(labels: list[str]) -> int:
    """How many entries of a legend stand in a row."""
    return max(1, min(len(labels), ROW_CHARACTERS // (max(map(len, labels)) + 6)))


def name_ends(axes: Axes, ends: list[tuple[tuple[float, float], Look]]) -> None:
    """Names in the margin beside the lines' ends; a legend where they end apart or a name would eat the axes."""
    if not ends:
        axes.text(0.5, 0.5, "no run has finished", transform=axes.transAxes, ha="center", color=MUTED)
        return
    if len({x for (x, _), _ in ends}) > 1 or max(len(look.label) for _, look in ends) > MARGIN_CHARACTERS:
        legend(axes, [look for _, look in ends])
        return
    low, high = axes.get_ylim()
    to_axes = axes.transScale.transform
    span = [float(to_axes((1, value))[1]) for value in (low, high)]
    heights = [(float(to_axes((1, y))[1]) - span[0]) / (span[1] - span[0]) for (_, y), _ in ends]
    for height, (_, look) in zip(spread(heights, 0.07), ends, strict=True):
        axes.text(1.02, height, look.label, transform=axes.transAxes, color=look.colour, va="center", fontsize="small")


def spread(heights: list[float], gap: float) -> list[float]:
    """Moves heights apart until neighbours are at least `gap` from each other, keeping their order and mean.

    Args:
        heights: in fractions of the axes.
        gap: the same unit.
    """
    order = sorted(range(len(heights)), key=heights.__getitem__)
    clusters: list[list[int]] = []
    for index in order:
        clusters.append([index])
        while len(clusters) > 1 and _bottom(clusters[-1], heights, gap) - _top(clusters[-2], heights, gap) < gap:
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    placed = list(heights)
    for cluster in clusters:
        for position, index in enumerate(cluster):
            placed[index] = _bottom(cluster, heights, gap) + position * gap
    return placed


def _bottom(cluster: list[int], heights: list[float], gap: float) -> float:
    return sum(heights[index] for index in cluster) / len(cluster) - gap * (len(cluster) - 1) / 2


def _top(cluster: list[int], heights: list[float], gap: float) -> float:
    return _bottom(cluster, heights, gap) + gap * (len(cluster) - 1)
