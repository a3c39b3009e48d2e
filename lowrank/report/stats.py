"""Means over seeds and paired differences, with intervals that count seeds and test items, and p values."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
LEVEL = (1 - CONFIDENCE) / 2
"""What a one-sided p value must not exceed: half of what a two-sided interval leaves out."""

SMALLEST = 1e-15
"""No p value between 0 and this is told from it."""


@dataclass(frozen=True)
class Items:
    """What each test item adds to a metric, by seed: float64 of shape (items,), whose mean moves as the metric does."""

    values: Mapping[int, NDArray[np.float64]]
    split: tuple[str, ...]
    """Which evaluation of which data the items are of."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its two-sided interval: mean +- sqrt((t(n - 1) e)^2 + (t(m - 1) f)^2).

    n seeds and m items; `error` e is the standard error over seeds, `items_error` f that over items, 0 where the
    metric has none. Each source has its own t, so the interval is never narrower than that over seeds alone; with
    three seeds it holds in 96 % of cases or more, where Welch's degrees of freedom hold in 92 %.
    One seed has no interval; no seed (0) is a computed value, which is its own.

    Source: G. Y. Zou and A. Donner (2008), "Construction of confidence limits about effect measures: a general
    approach", Statistics in Medicine 27, for the sum of two margins.
    """

    mean: float
    seeds: int
    error: float = 0.0
    items: int = 0
    items_error: float = 0.0

    @property
    def low(self) -> float | None:
        """The lower end of the interval."""
        return None if self.seeds == 1 else self.mean - self._margin(LEVEL)

    @property
    def high(self) -> float | None:
        """The upper end."""
        return None if self.seeds == 1 else self.mean + self._margin(LEVEL)

    @property
    def certain(self) -> bool:
        """Whether nothing varies: computed, or the same for each of several seeds and each item."""
        return self.seeds != 1 and self.error == 0 and self.items_error == 0

    def above(self, limit: float) -> float:
        """The one-sided p value of "at most `limit`": the level at which the interval begins to leave `limit` out.

        Returns:
            1 where the mean is not above the limit, or there is no interval.
        """
        away = self.mean - limit
        if self.seeds == 1 or away <= 0:
            return 1.0
        if self.certain:
            return 0.0
        if not self.items_error:
            return _share_below(self.seeds - 1, -away / self.error)
        if self._margin(SMALLEST) <= away:
            return SMALLEST
        few, many = math.log(SMALLEST), math.log(0.5)
        for _ in range(40):
            middle = (few + many) / 2
            few, many = (few, middle) if self._margin(math.exp(middle)) <= away else (middle, many)
        return math.exp(many)

    def below(self, limit: float) -> float:
        """The same for "at least `limit`"."""
        return self.minus().above(-limit)

    def minus(self) -> Estimate:
        """The estimate of the negative value."""
        return Estimate(-self.mean, self.seeds, self.error, self.items, self.items_error)

    def _margin(self, level: float) -> float:
        over_seeds = _quantile(self.seeds - 1, level) * self.error if self.error else 0.0
        over_items = _quantile(self.items - 1, level) * self.items_error if self.items_error else 0.0
        return math.hypot(over_seeds, over_items)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean over seeds, with sd / sqrt(n) as its standard error.

    Args:
        values: one per seed, at least one.
    """
    mean = statistics.fmean(values)
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Estimate(mean, len(values), error)


def _share_below(freedom: int, t: float) -> float:
    from scipy.special import stdtr

    return float(stdtr(freedom, t))


def _quantile(freedom: int, level: float) -> float:
    from scipy.special import stdtrit  # the same as scipy.stats.t.ppf, which takes a second to import

    return -float(stdtrit(freedom, level))


def paired(
    ours: Mapping[int, float],
    other: Mapping[int, float],
    our_items: Items | None = None,
    other_items: Items | None = None,
) -> Estimate | None:
    """The difference `ours - other`, seed by seed; None where they share no seed.

    Its error over m items is that of each item's difference, averaged over the seeds: sd / sqrt(m). Where the two
    sides were scored on different items, the squares of both sides' errors add up.

    Args:
        ours: the metric by seed.
        other: the same of the other side.
        our_items: what each test item added; None where the metric has no items.
        other_items: the same of the other side.
    """
    shared = sorted(ours.keys() & other.keys())
    if not shared:
        return None
    found = estimate([ours[seed] - other[seed] for seed in shared])
    if our_items is None or other_items is None:
        return found
    sides = [np.mean([side.values[seed] for seed in shared], axis=0) for side in (our_items, other_items)]
    same = our_items.split == other_items.split and len(sides[0]) == len(sides[1])
    parts = [sides[0] - sides[1]] if same else sides
    error = math.sqrt(sum(float(part.var(ddof=1)) / len(part) for part in parts))
    return Estimate(found.mean, found.seeds, found.error, min(map(len, parts)), error)


def holm(values: Sequence[float], count: int | None = None) -> list[float]:
    """p values corrected for being several: p(k) times (m - k + 1), k being its place, never less than an earlier one.

    Compared with a level, they let a wrong one of all m through no more often than that level says.

    Args:
        values: p values, in any order.
        count: m, where more was looked at than has a p value here.

    Source: S. Holm (1979), "A simple sequentially rejective multiple test procedure", Scand. J. Statistics 6.
    """
    total, worst, found = count or len(values), 0.0, [0.0] * len(values)
    for place, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        worst = max(worst, min(1.0, (total - place) * values[index]))
        found[index] = worst
    return found
