"""The kinds of claims."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from lowrank.report.kinds.base import ClaimView, Goal, Where
from lowrank.strict import Name, NonNegativeFloat, PositiveFloat, Strict


class Case(Strict):
    """The optima that a sentence speaks of, and the ratio it gives them."""

    where: Where = {}
    ratio: PositiveFloat
    holds: bool = True
    """False where the sentence says that they do not have this ratio."""


class OptimaClaim(ClaimView):
    """A claim about a table of optima."""

    table: Name


class SelectedOptimaClaim(OptimaClaim):
    """A claim about some of the optima."""

    where: Where = {}

    def rests_on(self) -> tuple[Where, ...]:
        """The rows that it selects."""
        return (self.where,)


class RatioClaim(OptimaClaim):
    """Each optimum that `cases` select stands in the stated ratio to its baseline."""

    check: Literal["ratio"]
    cases: tuple[Case, ...]
    stated: Name | None = None
    """The artefact that prints ratios, against which the sentence is held too: does the document agree with itself?"""

    def rests_on(self) -> tuple[Where, ...]:
        """The rows of its cases."""
        return tuple(case.where for case in self.cases)


class DependsClaim(SelectedOptimaClaim):
    """The optimum moves (or does not) when `factor` changes and `fixed` stays."""

    check: Literal["depends"]
    factor: str
    fixed: tuple[str, ...]
    expected: bool


class TiedClaim(SelectedOptimaClaim):
    """An optimum among those selected is no better than its runner-up, within a margin."""

    check: Literal["tied"]
    margin: PositiveFloat
    """Of the table's metric: the whole interval of the difference lies within it."""
    untested: str = ""
    """What else the sentence says and no run here decides, such as why they tie."""


class OutperformsClaim(SelectedOptimaClaim):
    """Somewhere, an optimum with `ratio` has a better metric than the best one with `other`."""

    check: Literal["outperforms"]
    ratio: PositiveFloat
    other: PositiveFloat
    within: tuple[str, ...]


class GridResolutionClaim(ClaimView):
    """Neighbours among the ratios that the document states cannot be told apart on its own grid."""

    check: Literal["grid_resolution"]
    curves: tuple[Name, ...]
    """Artefacts of the published numbers whose rows name a value of `axis`: the document's grid."""
    axis: str
    ratios: tuple[PositiveFloat, ...]


class TableClaim(ClaimView):
    """A claim about a metric of one table."""

    table: Name


class SidesClaim(TableClaim):
    """A claim that sets rows of a table against others of it."""

    metric: str
    goal: Goal
    leaves_out: str = ""
    """Why rows that differ from those of a side in what it names, the arm apart, are in no side."""


class CompareClaim(SidesClaim):
    """Each configuration of `better` beats each of `worse`, by the paired difference over seeds."""

    check: Literal["compare"]
    better: Where
    worse: Where
    by: tuple[str, ...] = ()
    """Columns in which the two sides agree, such as the data."""
    anywhere: bool = False
    """One pair that holds is enough; else all must."""
    equal_within: NonNegativeFloat | None = None
    """The claim is that both are equal: the whole interval lies within this difference."""
    or_better: bool = False
    """With `equal_within`: the first side is at least as good, and may be better by any amount."""
    untrained: bool = False
    """Both sides are models as they start: a difference is arithmetic, and that of each seed counts, not their mean."""

    def rests_on(self) -> tuple[Where, ...]:
        """Both sides."""
        return self.better, self.worse

    @model_validator(mode="after")
    def _margin(self) -> CompareClaim:
        if self.or_better and self.equal_within is None:
            raise ValueError("or_better needs equal_within, the difference that still counts as equal")
        if self.untrained and (self.equal_within is None or self.or_better):
            raise ValueError("untrained needs equal_within, without or_better: it asks whether two starts are the same")
        return self


class OrderClaim(SidesClaim):
    """Configurations in an order, the best first: every one beats every later one."""

    check: Literal["order"]
    ranking: tuple[Where, ...] = ()
    along: str | None = None
    """In place of a ranking: all rows of the table by this column, a number or several (`16,22`)."""
    best: Literal["most", "least"] = "most"
    """The end of `along` that is best."""

    def rests_on(self) -> tuple[Where, ...]:
        """Every place of the ranking; all rows where it goes along a column."""
        return self.ranking or ({},)

    @model_validator(mode="after")
    def _one_order(self) -> OrderClaim:
        if bool(self.ranking) == (self.along is not None):
            raise ValueError("give ranking, or along, a column whose values all rows are ordered by")
        return self


class WithinClaim(TableClaim):
    """A column of the selected rows lies within bounds, its interval over seeds included."""

    check: Literal["within"]
    where: Where = {}
    column: str
    at_least: float | None = None
    at_most: float | None = None
    equals: float | None = None
    tolerance: NonNegativeFloat = 0.0
    """Largest difference from `equals`."""
    reason: str
    """Why these bounds decide the sentence."""

    def rests_on(self) -> tuple[Where, ...]:
        """The rows that it selects."""
        return (self.where,)

    @model_validator(mode="after")
    def _bounded(self) -> WithinClaim:
        if (self.equals is None) == (self.at_least is None and self.at_most is None):
            raise ValueError("give equals (with a tolerance), or at_least and at_most")
        return self


class WordClaim(TableClaim):
    """The rows of a table of words have this word; the baseline's words are its own measure and say nothing."""

    check: Literal["word"]
    where: Where
    column: str
    equals: str

    def rests_on(self) -> tuple[Where, ...]:
        """The rows that it selects."""
        return (self.where,)


class ByConstructionClaim(ClaimView):
    """A sentence that holds because we made it so, such as a file that the document lists and this page has."""

    check: Literal["by_construction"]
    reason: str


class UnmeasurableClaim(ClaimView):
    """A sentence that no run can decide, such as praise, or a device that is not there."""

    check: Literal["unmeasurable"]
    reason: str
