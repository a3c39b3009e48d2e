"""The kinds of tables."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import model_validator

from lowrank.report.kinds.base import CellRef, Goal, TableView, Value, Where
from lowrank.strict import Fraction, Name, PositiveInt, Strict


class Summary(TableView):
    """One row per combination of `by`: mean over seeds with its interval, and what is missing."""

    kind: Literal["summary"]
    of_runs: ClassVar[bool] = True
    by: tuple[str, ...]
    metrics: tuple[str, ...]
    where: Where = {}
    results_json: bool = False
    """Also writes `results_<configuration>.json` in the shape that the lr_ratio document publishes."""


class Optima(TableView):
    """One row per combination of `by`: the best value along `axis`, its ties, and its ratio to a baseline."""

    kind: Literal["optima"]
    of_runs: ClassVar[bool] = True
    by: tuple[str, ...]
    axis: str
    metric: str
    goal: Goal = "min"
    where: Where = {}
    baseline: Where
    """The rows whose optimum the ratio divides by."""
    match: tuple[str, ...] = ()
    """Columns in which an optimum and its baseline agree."""
    carry: tuple[str, ...] = ()
    """Further columns, averaged over seeds at the optimum."""


class Tuned(TableView):
    """One row per combination of `by`: the value of `axis` that `choose_by` likes best, and the metrics there."""

    kind: Literal["tuned"]
    of_runs: ClassVar[bool] = True
    by: tuple[str, ...]
    axis: str
    choose_by: str
    """Its mean over seeds decides; measured on the validation split, for the metrics are reported."""
    goal: Goal = "min"
    """Whether less or more of `choose_by` is better."""
    metrics: tuple[str, ...]
    where: Where = {}


class Course(TableView):
    """A quantity over the steps of training: mean over seeds with its interval, one row per `by` and step."""

    kind: Literal["course"]
    of_runs: ClassVar[bool] = True
    by: tuple[str, ...]
    tag: str
    """A scalar of the runs' event files: lr, train_loss, val_loss, val_accuracy."""
    where: Where = {}
    at: Name | None = None
    """A `tuned` table: only the runs at its chosen value."""
    window: PositiveInt = 1
    """Each value is the mean over so many steps, as trainers log it."""
    smoothing: Fraction = 0.0
    """Weight of what came before in a moving average of the mean (`smoothed`), as TensorBoard's slider sets it."""

    def reads(self) -> tuple[str, ...]:
        """The table that chooses runs."""
        return (self.at,) if self.at is not None else ()


class Pivot(TableView):
    """One metric of another table, its rows by `rows` and a column for each value of `columns`."""

    kind: Literal["pivot"]
    table: Name
    rows: tuple[str, ...]
    columns: str
    metric: str
    where: Where = {}

    def reads(self) -> tuple[str, ...]:
        """The table that is turned."""
        return (self.table,)


class Unpivot(TableView):
    """Columns of another table as rows: one row per row and stem, where `short_loss` is `loss` of the stem `short`."""

    kind: Literal["unpivot"]
    table: Name
    keep: tuple[str, ...]
    """Columns that stay beside each row."""
    into: Name
    """The column that says which stem a row is of."""
    stems: dict[str, str]
    """Beginning of a column's name -> what the reader sees of it."""
    metrics: tuple[str, ...]
    where: Where = {}

    def reads(self) -> tuple[str, ...]:
        """The table that is turned."""
        return (self.table,)


class Averages(TableView):
    """Means of columns of another table, one row per combination of `by`."""

    kind: Literal["averages"]
    table: Name
    by: tuple[str, ...]
    metrics: tuple[str, ...]
    """Columns of numbers, or one of lists of numbers, which has a row for each place, numbered in `place`."""
    latest: str | None = None
    """Of each group, only the rows with the highest value of this column, such as the last step."""
    where: Where = {}

    def reads(self) -> tuple[str, ...]:
        """The table that is averaged."""
        return (self.table,)


class Records(TableView):
    """The rows that an evaluation or an observer recorded, one after another, beside their run's columns."""

    kind: Literal["records"]
    of_runs: ClassVar[bool] = True
    by: tuple[str, ...]
    """Columns of the runs that stand before each row's own; with them come `seed` and `run`."""
    evaluation: Name | None = None
    """An evaluation of the study whose protocol records rows, such as generated samples."""
    observer: Name | None = None
    """Or an observer of the runs."""
    where: Where = {}
    at: Name | None = None
    """A `tuned` table: only the runs at its chosen value."""

    @model_validator(mode="after")
    def _one_source(self) -> Records:
        if (self.evaluation is None) == (self.observer is None):
            raise ValueError("give evaluation or observer, whose rows are shown")
        return self

    def reads(self) -> tuple[str, ...]:
        """The table that chooses runs."""
        return (self.at,) if self.at is not None else ()


class Settings(TableView):
    """The distinct values that the runs have in each column."""

    kind: Literal["settings"]
    columns: tuple[str, ...]


class Coverage(TableView):
    """The document's grid against the runs of this scale, one row per combination of `by`."""

    kind: Literal["coverage"]
    by: tuple[str, ...]
    axis: str
    grid: tuple[dict[str, Value | tuple[Value, ...]], ...]
    """Products of axes, as in a sweep."""


class DocumentCurves(TableView):
    """What the document's own curves say of their optima, within the accuracy of reading them."""

    kind: Literal["document_curves"]
    curves: tuple[str, ...]
    """Artefacts of the published numbers whose rows name a value of `axis`."""
    axis: str
    baseline: dict[str, Value]
    stated: str
    """The artefact that states the ratios."""


class CountRow(Strict):
    """A method on a model, to be counted without weights."""

    label: str
    card: Name
    """The model card; nothing of it is fetched."""
    chain: Any
    """As in an arm of the study."""
    task: Literal["classification", "causal_lm", "masked_lm"] = "classification"
    labels: PositiveInt = 2
    """Classes of the head; not used for language models."""
    layers: PositiveInt | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: PositiveInt | None = None
    """Examples of the step whose activations count; where it is not given, they are left out."""
    tokens: PositiveInt | None = None
    """Tokens of each example; an image model needs none."""
    columns: dict[str, Value] = {}
    """What further columns hold in this row, such as the rank, for figures and cells to name."""


class Counts(TableView):
    """Parameters and bytes of a training step, counted on shapes alone: exact, at every scale."""

    kind: Literal["counts"]
    counted: ClassVar[bool] = True
    rows: tuple[CountRow, ...]
    bytes: bool = True
    """False counts parameters alone, which takes a tenth of the time: no step is gone through."""


class ArithmeticRow(Strict):
    """A number that follows from others."""

    label: str
    formula: str
    """+ - * / // % **, parentheses, exp log sqrt round floor ceil min max, and the names of `values`."""
    values: dict[str, int | float | CellRef] = {}
    printed: str | int | float | None = None
    """As the document prints it; text keeps its last zeros."""


class Arithmetic(TableView):
    """One row per formula: what it gives, and whether the document's printed number is that, rounded."""

    kind: Literal["arithmetic"]
    rows: tuple[ArithmeticRow, ...]

    def reads(self) -> tuple[str, ...]:
        """The tables whose cells enter a formula."""
        values = (value for row in self.rows for value in row.values.values())
        return tuple(value.table for value in values if isinstance(value, CellRef))
