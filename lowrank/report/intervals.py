"""A mean over seeds and its interval as columns of a table."""

from __future__ import annotations

import math
import re

from lowrank.report.stats import Estimate

BOUNDS = (
    (re.compile(r"(accuracy|share|f1|agreement)$"), 0.0, 1.0),
    (re.compile(r"perplexity$"), 1.0, math.inf),
    (re.compile(r"(loss|norm|norm_mean|speedup|_s|_ms|_bytes|_flops)$"), 0.0, math.inf),
)
"""The end of a metric's name -> between what its values lie."""


def interval_columns(name: str, found: Estimate | None) -> dict[str, float | None]:
    """`name`, `name_low` and `name_high`; the interval is cut where the metric's values end.

    What is cut off holds no possible value, so the interval covers the true mean as often as before.

    Args:
        name: the metric.
        found: its mean over seeds; None where there is none.
    """
    if found is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    least, most = next(((low, high) for ends, low, high in BOUNDS if ends.search(name)), (-math.inf, math.inf))
    low = None if found.low is None else max(found.low, least)
    return {name: found.mean, f"{name}_low": low, f"{name}_high": None if found.high is None else min(found.high, most)}
