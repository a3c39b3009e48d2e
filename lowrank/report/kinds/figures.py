"""The kinds of figures."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from lowrank.report.kinds.base import FigureView, Where


class Lines(FigureView):
    """A line with markers per series; where `y_low` and `y_high` are columns, error bars."""

    kind: Literal["lines"]
    x: str
    y: str
    x_label: str
    y_label: str
    series: tuple[str, ...]
    """Columns whose combination makes a series."""
    where: Where = {}
    reference: Where = {}
    """Rows drawn as a horizontal line instead."""
    log_x: bool = True
    log_y: bool = False
    guides: tuple[float, ...] = ()
    """Values of y that the document names, as thin lines."""
    dodge: float = 0.0
    """Points by which neighbouring series are drawn apart, where markers would hide each other."""


class Curves(FigureView):
    """A line per series over steps, with a band for its interval; drawn from a table of kind `course`."""

    kind: Literal["curves"]
    series: tuple[str, ...]
    """Columns whose combination makes a series."""
    y_label: str
    x_label: str = "step"
    where: Where = {}
    log_x: bool = False
    log_y: bool = False


class Bars(FigureView):
    """Horizontal bars with their values: one per row, grouped by `series`, or `stack`ed from several columns."""

    kind: Literal["bars"]
    rows: tuple[str, ...]
    """Columns that name a bar, or a group of bars."""
    series: tuple[str, ...] = ()
    """Columns that tell the bars of a group apart."""
    x: str | None = None
    """The column that is drawn, with its interval where the table has one."""
    stack: tuple[str, ...] = ()
    """Columns drawn end to end instead."""
    x_label: str
    where: Where = {}
    log_x: bool = False
    unit: float = 1.0
    """What one unit of the axis is worth in the column's own, such as 1048576 for bytes shown as MiB."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Bars:
        if (self.x is None) == (not self.stack):
            raise ValueError("give x, one column, or stack, several")
        if self.stack and (self.series or self.log_x):
            raise ValueError("a stack has neither series nor a logarithmic axis")
        return self


class Scatter(FigureView):
    """A labelled point per row; where intervals are columns, with bars both ways."""

    kind: Literal["scatter"]
    x: str
    y: str
    x_label: str
    y_label: str
    series: tuple[str, ...]
    """Columns that give a point its colour and marker."""
    label: tuple[str, ...]
    """Columns whose values are written beside a point."""
    where: Where = {}
    log_x: bool = False
    log_y: bool = False
