"""The kinds of tables, figures and claims: what each may be told in a study's YAML.

A kind is a record here and a function in `tables`, `figures`, `checks` or `audit`, joined by
`@table(record)` and its siblings; a test holds the two together. Nothing heavy is imported.
"""

from __future__ import annotations

from typing import Literal

from lowrank.strict import Name, PositiveFloat, Strict

Value = int | float | str | None


class Range(Strict):
    """Limits on a column; a missing value lies in no range."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    other_than: float | None = None


Where = dict[str, Range | tuple[Value, ...]]
"""Column -> the values that are kept (`null` keeps rows without one), or a range."""


class TableView(Strict):
    """A table: `results/studies/<study>/<name>.csv`."""

    title: str
    note: str
    """Defines the columns; stands beside the table."""
    show: tuple[str, ...] = ()
    """Columns on the page, in order; all of them where empty. The CSV always has all."""


class Summary(TableView):
    """One row per combination of `by`: mean over seeds with its interval, and what is missing."""

    kind: Literal["summary"]
    by: tuple[str, ...]
    metrics: tuple[str, ...]
    where: Where = {}
    results_json: bool = False
    """Also writes `results_<configuration>.json` in the shape that the lr_ratio document publishes."""


class Optima(TableView):
    """One row per combination of `by`: the best value along `axis`, its ties, and its ratio to a baseline."""

    kind: Literal["optima"]
    by: tuple[str, ...]
    axis: str
    metric: str
    goal: Literal["min", "max"] = "min"
    where: Where = {}
    baseline: Where
    """The rows whose optimum the ratio divides by."""
    match: tuple[str, ...] = ()
    """Columns in which an optimum and its baseline agree."""
    carry: tuple[str, ...] = ()
    """Further columns, averaged over seeds at the optimum."""


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


class FigureView(Strict):
    """A figure: `results/studies/<study>/<name>.svg`, drawn from one table and nothing else."""

    table: Name
    title: str
    caption: str


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


class ClaimView(Strict):
    """A claim: a sentence of the published numbers, decided by a named check."""


class Case(Strict):
    """The optima that a sentence speaks of, and the ratio it gives them."""

    where: Where = {}
    ratio: PositiveFloat
    holds: bool = True
    """False where the sentence says that they do not have this ratio."""


class OptimaClaim(ClaimView):
    """A claim about a table of optima."""

    table: Name


class RatioClaim(OptimaClaim):
    """Each optimum that `cases` select stands in the stated ratio to its baseline."""

    check: Literal["ratio"]
    cases: tuple[Case, ...]
    stated: Name | None = None
    """The artefact that prints ratios, against which the sentence is held too: does the document agree with itself?"""


class DependsClaim(OptimaClaim):
    """The optimum moves (or does not) when `factor` changes and `fixed` stays."""

    check: Literal["depends"]
    factor: str
    fixed: tuple[str, ...]
    where: Where = {}
    expected: bool


class TiedClaim(OptimaClaim):
    """An optimum among those selected cannot be told from its runner-up."""

    check: Literal["tied"]
    where: Where = {}


class OutperformsClaim(OptimaClaim):
    """Somewhere, an optimum with `ratio` has a better metric than the best one with `other`."""

    check: Literal["outperforms"]
    ratio: PositiveFloat
    other: PositiveFloat
    within: tuple[str, ...]
    where: Where = {}


class GridResolutionClaim(ClaimView):
    """The stated ratios cannot be told apart on the document's own grid."""

    check: Literal["grid_resolution"]
    step: PositiveFloat
    """Factor between neighbours on the grid."""
    ratios: tuple[PositiveFloat, ...]


class ResultsSchemaClaim(ClaimView):
    """The files of results have the keys that the document prints."""

    check: Literal["results_schema"]
    keys: tuple[str, ...]
