"""Means over seeds and paired differences, each with a named interval."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds; `low` and `high` bound its two-sided t interval and are None for one seed."""

    mean: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def resolved(self) -> bool:
        """Whether the interval exists and leaves zero out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and t interval: mean +- t(n - 1) sd / sqrt(n).

    Args:
        values: one per seed, at least one.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean, None, None, len(values))
    half = _quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half, len(values))


@functools.cache
def _quantile(freedom: int) -> float:
    from scipy.special import stdtrit  # the same as scipy.stats.t.ppf, which takes a second to import

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def paired(ours: Mapping[int, float], other: Mapping[int, float]) -> Estimate | None:
    """The difference `ours - other`, seed by seed; None where they share no seed."""
    shared = sorted(ours.keys() & other.keys())
    return estimate([ours[seed] - other[seed] for seed in shared]) if shared else None
