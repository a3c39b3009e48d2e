"""The kinds of claims."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from lowrank.report.kinds.base import ClaimView, Goal, Value, Where
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
    """An optimum among those selected cannot be told from its runner-up."""

    check: Literal["tied"]


class OutperformsClaim(SelectedOptimaClaim):
    """Somewhere, an optimum with `ratio` has a better metric than the best one with `other`."""

    check: Literal["outperforms"]
    ratio: PositiveFloat
    other: PositiveFloat
    within: tuple[str, ...]


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


class TableClaim(ClaimView):
    """A claim about a metric of one table."""

    table: Name


class CompareClaim(TableClaim):
    """Each configuration of `better` beats each of `worse`, by the paired difference over seeds."""

    check: Literal["compare"]
    metric: str
    goal: Goal
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

    def rests_on(self) -> tuple[Where, ...]:
        """Both sides."""
        return self.better, self.worse

    @model_validator(mode="after")
    def _margin(self) -> CompareClaim:
        if self.or_better and self.equal_within is None:
            raise ValueError("or_better needs equal_within, the difference that still counts as equal")
        return self


class OrderClaim(TableClaim):
    """Configurations in the order of a ranking, the best first: every one beats every later one."""

    check: Literal["order"]
    metric: str
    goal: Goal
    ranking: tuple[Where, ...]

    def rests_on(self) -> tuple[Where, ...]:
        """Every place of the ranking."""
        return self.ranking


class WithinClaim(TableClaim):
    """A column of the selected rows lies within bounds, its interval over seeds included."""

    check: Literal["within"]
    where: Where = {}
    column: str
    at_least: float | None = None
    at_most: float | None = None
    equals: Value = None
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


class UnmeasurableClaim(ClaimView):
    """A sentence that no run can decide, such as praise, or a device that is not there."""

    check: Literal["unmeasurable"]
    reason: str
