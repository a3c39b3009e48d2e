"""Figures of horizontal bars: a value beside each, grouped or stacked."""

from __future__ import annotations

import textwrap
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lowrank.report.columns import PLAIN
from lowrank.report.context import Context, figure
from lowrank.report.figures import row_of
from lowrank.report.frame import groups, need_columns, plain, select
from lowrank.report.kinds import Bars
from lowrank.report.style import INK, MUTED, PAPER, SERIES, SETTINGS, Look, in_order, looks
from lowrank.report.text import number

HATCHES = (None, "///", "...", "xxx")
"""Of bars of one colour, in order."""

LABEL_CHARACTERS = 30
"""In a line of a bar's name; a longer one would leave the bars no room."""

WIDTH, MARGIN, THICKNESS, GAP = 5.6, 1.25, 0.27, 0.5
"""Inches: the figure, its axis and legend, a bar; and the room between groups, in bars."""


@figure(Bars)
def bars(context: Context, name: str) -> Figure:
    """One bar per row, or per row and series, with its interval and its value; a row without one says so."""
    view, place = context.figure_view(Bars, name)
    columns = list(view.stack) or [str(view.x)]
    table = context.table(view.table)
    need_columns(table, [*view.rows, *view.series, *columns], place)
    table = select(table, view.where, place)
    bands = in_order(groups(table, view.rows, sort=False))
    named = [look.label for look in looks([keys for keys, _ in bands], context.views.titles)]
    labels = [textwrap.fill(label, LABEL_CHARACTERS) for label in named]
    members = _members(table, view)
    drawn = looks(members or [keys for keys, _ in bands], context.views.titles)
    heights = max(1, len(members)) * len(bands) + GAP * len(bands)
    with matplotlib.rc_context(SETTINGS):
        drawing = Figure(figsize=(WIDTH, MARGIN + THICKNESS * heights), layout="constrained")
        axes = drawing.add_subplot()
        axes.set_xlabel(view.x_label)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        if view.log_x:
            axes.set_xscale("log")
        hatches = _hatches(drawn)
        middles = []
        top = 0.0
        for index, (_, rows) in enumerate(bands):
            inside = [_only(rows, member, place) for member in members] if members else [rows]
            middles.append(top + (len(inside) - 1) / 2)
            for offset, row in enumerate(inside):
                look = drawn[offset if members else index]
                if view.stack:
                    _stacked(axes, view, row, top + offset)
                else:
                    _bar(axes, view, row, top + offset, look, hatches[offset] if members else None)
            top += len(inside) + GAP
        axes.set_yticks(middles, labels)
        axes.set_ylim(top - GAP - 0.4, -0.6)
        _room(axes, view)
        _legend(drawing, axes, view, drawn if members else [])
    return drawing


def _members(table: pd.DataFrame, view: Bars) -> list[dict[str, Any]]:
    return [keys for keys, _ in in_order(groups(table, view.series, sort=False))] if view.series else []


def _only(rows: pd.DataFrame, member: dict[str, Any], place: str) -> pd.DataFrame:
    return select(rows, {key: (value,) for key, value in member.items()}, place)


def _hatches(drawn: list[Look]) -> list[str | None]:
    """A pattern for each series after the first of its colour: variants of one method are told apart."""
    colours = [look.colour for look in drawn]
    return [HATCHES[colours[:index].count(colour) % len(HATCHES)] for index, colour in enumerate(colours)]


def _bar(axes: Axes, view: Bars, rows: pd.DataFrame, y: float, look: Look, hatch: str | None) -> None:
    column = str(view.x)
    row = rows.iloc[0].to_dict() if len(rows) else {}
    value = plain(row.get(column))
    if value is None:
        why = str(row.get("status", "")) if row else ""
        _beside(axes, 0, y, "–" if why in ("", "ok") else why, MUTED)
        return
    shown = value / view.unit
    axes.barh(y, shown, height=0.8, color=look.colour, hatch=hatch, edgecolor=PAPER, linewidth=0,
              gid=f"bar {look.label}")  # fmt: skip
    low, high = plain(row.get(f"{column}_low")), plain(row.get(f"{column}_high"))
    end = shown
    if low is not None and high is not None:
        ends = [[(value - low) / view.unit], [(high - value) / view.unit]]
        axes.errorbar(shown, y, xerr=ends, fmt="none", ecolor=INK, elinewidth=1, capsize=2.5)
        end = high / view.unit
    _beside(axes, end, y, number(shown), INK)


def _stacked(axes: Axes, view: Bars, rows: pd.DataFrame, y: float) -> None:
    left = 0.0
    for column, colour in zip(view.stack, SERIES, strict=False):
        value = plain(rows[column].iloc[0])
        if value is None:
            _beside(axes, left, y, f"{PLAIN.heading(column)} not counted", MUTED)
            return
        axes.barh(y, value / view.unit, left=left, height=0.8, color=colour, edgecolor=PAPER, linewidth=0.8,
                  gid=f"part {column}")  # fmt: skip
        left += value / view.unit
    _beside(axes, left, y, number(left), INK)


def _beside(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    at = max(x, axes.get_xlim()[0]) if axes.get_xscale() == "log" else x
    axes.annotate(text, (at, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize="small", color=colour)


def _room(axes: Axes, view: Bars) -> None:
    """Room for the values at the right."""
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * (high / low) ** 0.18 if view.log_x else high + 0.16 * (high - low))


def _legend(drawing: Figure, axes: Axes, view: Bars, drawn: list[Look]) -> None:
    """Above the whole figure, since long names of bars leave the axes little of its width."""
    words = {column.partition("_")[0] for column in view.stack}
    shared = f"{words.pop()}_" if len(words) == 1 else ""  # `cost` of cost_parameter_bytes, cost_gradient_bytes
    parts = [PLAIN.heading(column.removeprefix(shared)) for column in view.stack]
    named: list[tuple[str, str, str | None]] = [(*part, None) for part in zip(parts, SERIES, strict=False)]
    named = named or [(look.label, look.colour, hatch) for look, hatch in zip(drawn, _hatches(drawn), strict=True)]
    if named:
        handles = [axes.barh([0], [0], color=colour, hatch=hatch, edgecolor=PAPER) for _, colour, hatch in named]
        labels = [label for label, _, _ in named]
        drawing.legend(handles=handles, labels=labels, loc="outside upper left", ncols=row_of(labels),
                       fontsize="small", handlelength=1.0, columnspacing=1.2)  # fmt: skip
