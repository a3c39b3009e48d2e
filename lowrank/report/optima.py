"""Where a sweep has its best value, how sure that is, and how it stands to a baseline's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lowrank.errors import ConfigError
from lowrank.report.frame import by_seed, groups, meets, need_columns, select, state, with_metrics
from lowrank.report.kinds import Goal, Optima, Where
from lowrank.report.stats import Estimate, estimate, paired

SAME_RATIO = math.sqrt(3)
"""Two ratios are the same within this factor: half of the step from 3.33 to 10, in logarithms."""


@dataclass(frozen=True)
class Optimum:
    """The best value along the swept axis for one configuration.

    `tied` holds every value whose paired difference from the best has zero inside its interval, the
    best included. With one seed nothing can be tied or told apart, and `tied` holds the best alone.
    """

    keys: Mapping[str, Any]
    grid: tuple[float, ...]
    best: float | None
    tied: tuple[float, ...]
    metric: Mapping[int, float]
    """The metric at the best value, by seed."""
    seeds: int
    by_seed: Mapping[int, float]
    """The best value that each seed alone would choose."""
    runner_up: float | None
    gap: Estimate | None
    """Paired difference of the runner-up from the best; positive is worse."""
    incomplete: bool
    """Whether a run that might have been the best is missing."""
    status: str
    cause: str
    carried: Mapping[str, Estimate]
    base: Optimum | None = None

    @property
    def edge(self) -> str:
        """At which end of the grid the best value, or one tied with it, lies."""
        if self.best is None or len(self.grid) < 2:
            return ""
        ends = [name for name, end in (("low", self.grid[0]), ("high", self.grid[-1])) if end in self.tied]
        return " and ".join(ends)

    @property
    def between(self) -> tuple[float | None, float | None]:
        """Half a step either way on the logarithmic grid; None where the grid ends."""
        if self.best is None:
            return None, None
        index = self.grid.index(self.best)
        low = math.sqrt(self.grid[index - 1] * self.best) if index > 0 else None
        high = math.sqrt(self.grid[index + 1] * self.best) if index + 1 < len(self.grid) else None
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
        (low, high), (base_low, base_high) = self.between, self.base.between
        return (low / base_high if low and base_high else None), (high / base_low if high and base_low else None)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Every ratio that the tied values of both sides allow, in order."""
        if self.base is None:
            return ()
        found: list[float] = []
        for ratio in sorted(value / base for value in self.tied for base in self.base.tied):
            if not found or not math.isclose(ratio, found[-1], rel_tol=1e-6):
                found.append(ratio)
        return tuple(found)


def same_ratio(one: float, other: float) -> bool:
    """Whether two ratios agree within half a step of the document's grid."""
    return abs(math.log(one / other)) < math.log(SAME_RATIO)


def find_optima(runs: pd.DataFrame, view: Optima, place: str) -> list[Optimum]:
    """The optimum of every combination of `view.by`, each with its baseline.

    Args:
        runs: from `read_runs`.
        view: what to optimise over what.
        place: starts a message.
    """
    chosen = select(runs, view.where, place)
    need_columns(chosen, [*view.by, view.axis], place)
    chosen = with_metrics(chosen, (view.metric, *view.carry), place)
    found = [
        find_optimum(keys, rows, view.axis, view.metric, view.goal, view.carry)
        for keys, rows in groups(chosen, view.by)
    ]
    baselines = [optimum for optimum in found if selects(view.baseline, optimum)]
    return [dataclasses.replace(optimum, base=_baseline(optimum, baselines, view, place)) for optimum in found]


def selects(where: Where | Mapping[str, Any], optimum: Optimum) -> bool:
    """Whether an optimum's configuration meets every condition."""
    return all(meets(optimum.keys.get(column), condition) for column, condition in where.items())


def _baseline(optimum: Optimum, baselines: Sequence[Optimum], view: Optima, place: str) -> Optimum | None:
    matching = [base for base in baselines if all(base.keys[key] == optimum.keys[key] for key in view.match)]
    if len(matching) > 1:
        raise ConfigError(
            f"{place}: {len(matching)} baselines match {dict(optimum.keys)}; narrow `baseline` or `match`"
        )
    return matching[0] if matching else None


def find_optimum(
    keys: dict[str, Any], rows: pd.DataFrame, axis: str, metric: str, goal: Goal, carry: tuple[str, ...] = ()
) -> Optimum:
    """The best value along `axis` by the mean over seeds of `metric`.

    Args:
        keys: the configuration.
        rows: its runs.
        axis: the swept column.
        metric: what is optimised.
        goal: min or max.
        carry: further columns, averaged over seeds at the optimum.
    """
    sign = 1.0 if goal == "min" else -1.0
    cells = {float(point[axis]): by_seed(cell, metric) for point, cell in groups(rows, (axis,))}
    status, cause = state(rows)
    # A value where a seed diverged, or is missing, does not compete with those that have every seed.
    most = max(map(len, cells.values()))
    candidates = {value: seeds for value, seeds in cells.items() if len(seeds) == most and most > 0}
    order = sorted(candidates, key=lambda value: sign * estimate(list(candidates[value].values())).mean)
    best = order[0] if order else None
    gaps = {value: gap for value in order[1:] if (gap := _worse(candidates[value], candidates[order[0]], sign))}
    tied = [value for value, gap in gaps.items() if gap.seeds > 1 and not gap.resolved]
    runner_up = order[1] if len(order) > 1 else None
    seeds = sorted({seed for values in candidates.values() for seed in values})
    complete = {seed: [v for v in order if seed in candidates[v]] for seed in seeds}
    at_best = rows[(rows[axis] == best) & (rows["status"] == "ok")]
    tested = tuple(sorted(value for value in cells if _was_run(rows[rows[axis] == value])))
    return Optimum(
        keys=keys,
        grid=tested,
        best=best,
        tied=tuple(sorted([best, *tied])) if best is not None else (),
        metric=candidates[best] if best is not None else {},
        seeds=rows["seed"].nunique(),
        by_seed={seed: min(values, key=lambda v: sign * candidates[v][seed]) for seed, values in complete.items()},
        runner_up=runner_up,
        gap=gaps.get(runner_up) if runner_up is not None else None,
        incomplete=bool(rows["status"].isin(["missing", "failed"]).any()),
        status=status,
        cause=cause,
        carried={name: estimate(list(at_best[name])) for name in carry if at_best[name].notna().any()},
    )


def _worse(other: Mapping[int, float], best: Mapping[int, float], sign: float) -> Estimate | None:
    return paired({k: sign * v for k, v in other.items()}, {k: sign * v for k, v in best.items()})


def _was_run(rows: pd.DataFrame) -> bool:
    return bool(rows["status"].isin(["ok", "diverged"]).any())
