"""The kinds of claims."""

from __future__ import annotations

from typing import Literal

from lowrank.report.kinds.base import ClaimView, Where
from lowrank.strict import Name, PositiveFloat, Strict


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
