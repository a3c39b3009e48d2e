"""Finding the best value of each sweep of a study."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from lowrank.errors import ConfigError
from lowrank.report.frame import by_seed, groups, need_columns, select, state, with_metrics
from lowrank.report.kinds import Goal, Optima
from lowrank.report.optimum import Optimum, selects
from lowrank.report.stats import Items, estimate, paired
from lowrank.report.text import label, numbers, rate

ItemsOf = Callable[[pd.DataFrame, str], Items | None]
"""The test items of a metric for some runs."""


def find_optima(runs: pd.DataFrame, view: Optima, place: str, items: ItemsOf | None = None) -> list[Optimum]:
    """The optimum of every combination of `view.by`, each with its baseline.

    Args:
        runs: from `read_runs`.
        view: what to optimise over what.
        place: starts a message.
        items: finds the test items of the metric.
    """
    chosen = select(runs, view.where, place)
    need_columns(chosen, [*view.by, view.axis], place)
    chosen = with_metrics(chosen, (view.metric, *view.carry), place)
    found = [
        find_optimum(keys, rows, view.axis, view.metric, view.goal, view.carry, items)
        for keys, rows in groups(chosen, view.by)
    ]
    baselines = [optimum for optimum in found if selects(view.baseline, optimum)]
    return [dataclasses.replace(optimum, base=_baseline(optimum, baselines, view, place)) for optimum in found]


def _baseline(optimum: Optimum, baselines: Sequence[Optimum], view: Optima, place: str) -> Optimum | None:
    matching = [base for base in baselines if all(base.keys[key] == optimum.keys[key] for key in view.match)]
    if len(matching) > 1:
        raise ConfigError(
            f"{place}: {len(matching)} baselines match {dict(optimum.keys)}; narrow `baseline` or `match`"
        )
    return matching[0] if matching else None


def find_optimum(
    keys: dict[str, Any],
    rows: pd.DataFrame,
    axis: str,
    metric: str,
    goal: Goal,
    carry: tuple[str, ...] = (),
    items: ItemsOf | None = None,
) -> Optimum:
    """The best value along `axis` by the mean of `metric` over the seeds that all values have in common.

    Args:
        keys: the configuration.
        rows: its runs.
        axis: the swept column.
        metric: what is optimised.
        goal: min or max.
        carry: further columns, averaged over seeds at the optimum.
        items: finds the test items of the metric.
    """
    sign = 1.0 if goal == "min" else -1.0
    cells = {float(point[axis]): cell for point, cell in groups(rows, (axis,))}
    measured = {value: found for value, cell in cells.items() if (found := by_seed(cell, metric))}
    # A value where a seed diverged, or is missing, does not compete, unless there is no other.
    whole = {value: found for value, found in measured.items() if (cells[value]["status"] == "ok").all()}
    candidates = whole or measured
    common = set.intersection(*map(set, candidates.values())) if candidates else set()
    means = {v: sign * estimate([found[s] for s in common or found]).mean for v, found in candidates.items()}
    order = sorted(candidates, key=means.__getitem__)
    best = order[0] if order else None
    known = {value: items(cells[value], metric) if items else None for value in order}
    gaps = {
        value: gap if sign > 0 else gap.minus()
        for value in order[1:]
        if (gap := paired(candidates[value], candidates[order[0]], known[value], known[order[0]]))
    }
    seeds = {seed for found in candidates.values() for seed in found}
    status, cause = state(rows)
    at_best = rows[(rows[axis] == best) & (rows["status"] == "ok")]
    return Optimum(
        keys=keys,
        grid=tuple(sorted(value for value, cell in cells.items() if _was_run(cell))),
        best=best,
        metric=candidates[best] if best is not None else {},
        seeds=rows["seed"].nunique(),
        by_seed={
            s: min((v for v in order if s in candidates[v]), key=lambda v: sign * candidates[v][s])
            for s in sorted(seeds)
        },
        gaps=gaps,
        common=tuple(sorted(common)),
        lacks=_lacks(axis, best, common, seeds - set(candidates[best])) if best is not None else "",
        incomplete=bool(rows["status"].isin(["missing", "failed"]).any()),
        status=status,
        cause=cause,
        carried={name: estimate(list(at_best[name])) for name in carry if at_best[name].notna().any()},
    )


def _lacks(axis: str, best: float, common: set[int], absent: set[int]) -> str:
    if not absent:
        return ""
    shared = (
        f"over what all values share (seed {numbers(sorted(common))})" if common else "though no seed has every value"
    )
    return f"{label(axis)} {rate(best)} is best {shared}, and was not run with seed {numbers(sorted(absent))}"


def _was_run(rows: pd.DataFrame) -> bool:
    return bool(rows["status"].isin(["ok", "diverged"]).any())
