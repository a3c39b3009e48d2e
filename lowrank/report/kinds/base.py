"""What every kind of table, figure and claim has."""

from __future__ import annotations

from typing import ClassVar, Literal

from lowrank.strict import Name, Strict

Value = int | float | str | None

Goal = Literal["min", "max"]
"""Whether less or more is better."""


class Range(Strict):
    """Limits on a column; a missing value lies in no range."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    other_than: float | None = None


Where = dict[str, Range | tuple[Value, ...]]
"""Column -> the values that are kept (`null` keeps rows without one), or a range."""


class CellRef(Strict):
    """One cell of a table."""

    table: Name
    row: dict[str, Value]
    """Column -> value; together they name one row. `null` is a column without a value."""
    column: str


class TableView(Strict):
    """A table: `results/studies/<study>/<name>.csv`."""

    title: str
    note: str
    """Defines the columns; stands beside the table."""
    of_runs: ClassVar[bool] = False
    """Whether its values are what runs measured; those of a kind that reads other tables are if theirs are."""
    counted: ClassVar[bool] = False
    """Whether it follows from shapes alone, so that no run enters it and a job of its own makes it beside training."""
    show: tuple[str, ...] = ()
    """Columns on the page, in order; all of them where empty. The CSV always has all."""

    def reads(self) -> tuple[str, ...]:
        """Other tables that this one is computed from; they stand before it."""
        return ()


class FigureView(Strict):
    """A figure: `results/studies/<study>/<name>.svg`, drawn from one table and nothing else."""

    table: Name
    title: str
    caption: str


class ClaimView(Strict):
    """A claim: a sentence of the published numbers, decided by a named check."""

    def rests_on(self) -> tuple[Where, ...]:
        """Conditions on the rows of its table that the sentence speaks of."""
        return ()
