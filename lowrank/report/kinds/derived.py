"""Kinds that turn what others found into words and drawings."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from lowrank.report.kinds.base import FigureView, Goal, TableView, Where
from lowrank.report.kinds.tables import CountRow
from lowrank.strict import Name, Strict


class Word(Strict):
    """How a column becomes a word: its ratio to the baseline's, and the first limit that is not passed."""

    column: str
    limits: tuple[tuple[float, str], ...] = Field(min_length=1)
    """Rising limits of the ratio, each with its word."""
    beyond: str
    """The word past the last limit."""


class Use(Strict):
    """What the best row of a column is good for."""

    column: str
    goal: Goal
    text: str


class Words(TableView):
    """One row per row of another table: numbers as words, by rules that stand in the note."""

    kind: Literal["words"]
    table: Name
    where: Where = {}
    baseline: Where
    """The one row whose values the ratios divide by."""
    words: dict[Name, Word]
    uses: tuple[Use, ...] = ()
    """In this order: the first in whose column a row is the only best one is its use."""
    otherwise: str = ""
    """The use of a row that is best in nothing."""

    def reads(self) -> tuple[str, ...]:
        """The table whose numbers become words."""
        return (self.table,)


class TrainingPerplexity(TableView):
    """exp of the mean training loss of the last epoch, beside metrics of the same runs."""

    kind: Literal["training_perplexity"]
    of_runs: ClassVar[bool] = True
    by: tuple[str, ...]
    metrics: tuple[str, ...]
    where: Where = {}


class Dataflow(TableView):
    """The tensors of the first layer that a method works on, as the code makes them: one row per tensor."""

    kind: Literal["dataflow"]
    counted: ClassVar[bool] = True
    rows: tuple[CountRow, ...]


class DataflowFigure(FigureView):
    """What flows through a layer: one panel per label of a table of kind `dataflow`."""

    kind: Literal["dataflow"]
