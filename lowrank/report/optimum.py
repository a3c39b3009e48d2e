"""Where a sweep has its best value, how sure that is, and how it stands to a baseline's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowrank.report.frame import meets
from lowrank.report.kinds import Where
from lowrank.report.stats import CONFIDENCE, Estimate

SAME_RATIO = math.sqrt(3)
"""Two ratios are the same within this factor: half of the step from 3.33 to 10, in logarithms."""

SLACK = math.sqrt(10 / 9)
"""Grids are written 1, 3, 10: their steps are 3 and 3.33, each this far from the even step of sqrt(10)."""


@dataclass(frozen=True)
class Optimum:
    """The best value along the swept axis for one configuration, on the seeds that all values have in common."""

    keys: Mapping[str, Any]
    grid: tuple[float, ...]
    best: float | None
    metric: Mapping[int, float]
    """The metric at the best value, by seed."""
    seeds: int
    by_seed: Mapping[int, float]
    """The best value that each seed alone would choose."""
    gaps: Mapping[float, Estimate]
    """Paired difference of each other value from the best, the runner-up first; positive is worse."""
    common: tuple[int, ...]
    """The seeds on which the best was chosen."""
    lacks: str
    """Which seeds other values have and the best has not; empty where it lacks none."""
    incomplete: bool
    """Whether a run that might have been the best is missing."""
    status: str
    cause: str
    carried: Mapping[str, Estimate]
    base: Optimum | None = None
    family: int = 1
    """How many optima are looked at together."""

    @property
    def runner_up(self) -> float | None:
        """The second best value."""
        return next(iter(self.gaps), None)

    @property
    def gap(self) -> Estimate | None:
        """Paired difference of the runner-up from the best."""
        return next(iter(self.gaps.values()), None)

    @property
    def tied(self) -> tuple[float, ...]:
        """The best value and every one that is not told from it: together they hold the true best in 95 % of cases.

        The best is chosen on the same runs, and any of the others might have seemed better by chance; so each is
        told apart, one-sided, at 0.05 / (their number x `family`) (Bonferroni). With one seed nothing can be tied or
        told apart, and the best stands alone.

        Source: J. C. Hsu (1981), "Simultaneous confidence intervals for all distances from the best", Ann. Statist. 9.
        """
        if self.best is None:
            return ()
        level = (1 - CONFIDENCE) / (max(1, len(self.gaps)) * self.family)
        return tuple(
            sorted([self.best, *(v for v, gap in self.gaps.items() if gap.seeds > 1 and gap.above(0) > level)])
        )

    def among(self, family: int) -> Optimum:
        """The same optimum as one of so many that are looked at together."""
        return dataclasses.replace(self, family=family, base=self.base and self.base.among(family))

    @property
    def edge(self) -> str:
        """At which end of the grid the best value, or one tied with it, lies."""
        if self.best is None or len(self.grid) < 2:
            return ""
        ends = [name for name, end in (("low", self.grid[0]), ("high", self.grid[-1])) if end in self.tied]
        return " and ".join(ends)

    @property
    def between(self) -> tuple[float | None, float | None]:
        """Half a step either way of the best value; None where the grid ends."""
        return (None, None) if self.best is None else self._around(self.best)

    def _around(self, value: float) -> tuple[float | None, float | None]:
        index = self.grid.index(value)
        low = math.sqrt(self.grid[index - 1] * value) if index > 0 else None
        high = math.sqrt(self.grid[index + 1] * value) if index + 1 < len(self.grid) else None
        return low, high

    @property
    def ratio(self) -> float | None:
        """Best value over the baseline's best value."""
        return self.best / self.base.best if self.best and self.base and self.base.best else None

    @property
    def ratio_between(self) -> tuple[float | None, float | None]:
        """The ratio's range that the two grids leave open."""
        if self.base is None:
            return None, None
        return _quotient(self.between, self.base.between)

    def may_have(self, ratio: float) -> bool:
        """Whether a ratio lies in what the grids leave open around any of the tied values, ends included."""
        assert self.base is not None
        ranges = [_quotient(self._around(v), self.base._around(b)) for v in self.tied for b in self.base.tied]
        return any(
            (low is None or low <= ratio * SLACK) and (high is None or ratio <= high * SLACK) for low, high in ranges
        )

    @property
    def ratios(self) -> tuple[float, ...]:
        """Every ratio that the tied values of both sides allow, in order; 3 and 3.33 are one."""
        if self.base is None:
            return ()
        found: list[float] = []
        for ratio in sorted(value / base for value in self.tied for base in self.base.tied):
            if not found or ratio > found[-1] * SLACK**2 * (1 + 1e-6):
                found.append(ratio)
        return tuple(found)


def _quotient(
    ours: tuple[float | None, float | None], base: tuple[float | None, float | None]
) -> tuple[float | None, float | None]:
    low = ours[0] / base[1] if ours[0] and base[1] else None
    return low, (ours[1] / base[0] if ours[1] and base[0] else None)


def together(optima: Sequence[Optimum]) -> list[Optimum]:
    """The same optima as one claim looks at them: ties that hold for all of them and their baselines at once."""
    sides = {tuple(one.keys.items()) for found in optima for one in (found, found.base) if one is not None}
    return [found.among(len(sides)) for found in optima]


def same_ratio(one: float, other: float) -> bool:
    """Whether two ratios agree within half a step of the document's grid."""
    return abs(math.log(one / other)) < math.log(SAME_RATIO)


def selects(where: Where | Mapping[str, Any], optimum: Optimum) -> bool:
    """Whether an optimum's configuration meets every condition."""
    return all(meets(optimum.keys.get(column), condition) for column, condition in where.items())
