"""The kinds of figures."""

from __future__ import annotations

from typing import Literal

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
