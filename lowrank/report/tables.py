"""The kinds of tables: each turns a study's runs into a data frame."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lowrank.report.context import Context, RunsOfRow, cells, table
from lowrank.report.frame import by_seed, groups, need_columns, select, state, with_metrics, without_mixed_devices
from lowrank.report.intervals import interval_columns
from lowrank.report.kinds import Coverage, Optima, Settings, Summary, Tuned
from lowrank.report.optima import find_optimum
from lowrank.report.optimum import Optimum
from lowrank.report.stats import estimate
from lowrank.report.text import label, numbers


@cells(Summary)
def summary_cells(context: Context, name: str) -> list[RunsOfRow]:
    """The runs of each combination of `by`."""
    view, place = context.table_view(Summary, name)
    runs = select(context.runs, view.where, place)
    need_columns(runs, list(view.by), place)
    return groups(runs, view.by)


@table(Summary)
def summary(context: Context, name: str) -> pd.DataFrame:
    """Mean and t interval over seeds of each metric, one row per combination of `by`."""
    view, place = context.table_view(Summary, name)
    return pd.DataFrame(_measured(context, place, context.cells(name) or [], view.metrics, view.by))


def _measured(
    context: Context, place: str, rows: list[RunsOfRow], metrics: tuple[str, ...], by: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Each row with its metrics, their intervals, how many seeds there are, and what is missing."""
    shown = context.runs.loc[[index for _, cell in rows for index in cell.index]]
    runs, mixed = without_mixed_devices(with_metrics(shown, metrics, place), metrics, by)
    found = []
    for keys, cell in rows:
        row: dict[str, Any] = dict(keys)
        for metric in metrics:
            values = list(by_seed(runs.loc[cell.index], metric).values())
            row |= interval_columns(metric, estimate(values) if values else None)
        status, cause = state(cell)
        row |= {"seeds": int((cell["status"] == "ok").sum()), "seeds_planned": len(cell)}
        found.append({**row, "status": status, "cause": "; ".join(filter(None, (cause, mixed)))})
    return found


@dataclass(frozen=True)
class _Choice:
    """A combination of `by` at its chosen value, and what is to be said of the choice."""

    keys: dict[str, Any]
    cell: pd.DataFrame
    """The runs at the chosen value; all of them where nothing can be chosen."""
    best: float | None
    edge: str
    tuning: str
    lacks: str
    """Which seeds other values have and the chosen one has not."""
    seeds: int

    def row(self, axis: str, measured: dict[str, Any]) -> dict[str, Any]:
        """The row of the table; one that lacks seeds is partial, and says why."""
        row = {**self.keys, f"best_{axis}": self.best, "edge": self.edge, "tuning": self.tuning, **measured}
        if not self.lacks:
            return row
        cause = "; ".join(filter(None, (self.lacks, str(row["cause"]))))
        return {**row, "seeds_planned": self.seeds, "status": "partial", "cause": cause}


@cells(Tuned)
def tuned_cells(context: Context, name: str) -> list[RunsOfRow]:
    """The runs of each combination of `by` at its chosen value; all of them where nothing can be chosen."""
    return [(choice.keys, choice.cell) for choice in _choices(context, name)]


@table(Tuned)
def tuned(context: Context, name: str) -> pd.DataFrame:
    """The value of `axis` that the validation metric chooses, and the metrics measured there."""
    view, place = context.table_view(Tuned, name)
    metrics = tuple(dict.fromkeys((view.choose_by, *view.metrics)))
    choices = _choices(context, name)
    rows = _measured(context, place, [(one.keys, one.cell) for one in choices], metrics, view.by)
    return pd.DataFrame([one.row(view.axis, row) for one, row in zip(choices, rows, strict=True)])


def _choices(context: Context, name: str) -> list[_Choice]:
    view, place = context.table_view(Tuned, name)
    runs = select(context.runs, view.where, place)
    need_columns(runs, [*view.by, view.axis], place)
    runs = with_metrics(runs, (view.choose_by,), place)
    return [_choice(view, keys, cell) for keys, cell in groups(runs, view.by)]


def _choice(view: Tuned, keys: dict[str, Any], cell: pd.DataFrame) -> _Choice:
    values = cell[view.axis].nunique()
    tuning, edge = "", ""
    if values < 2:
        # A run of no steps is the untouched base: there is nothing that a better value could do.
        untouched = "steps" in cell and bool((cell["steps"] == 0).all())
        tuning = "nothing to tune" if untouched else f"{label(view.axis)} not tuned at this scale"
    optimum = find_optimum(keys, cell, view.axis, view.choose_by, view.goal) if values else None
    if optimum is None or optimum.best is None:
        return _Choice(keys, cell, None, edge, tuning, "", cell["seed"].nunique())
    if values > 1:
        # An end counts where the choice itself lies there, not where a tie reaches it.
        ends = dict(zip(optimum.grid[:1] + optimum.grid[-1:], ("low", "high"), strict=False))
        edge = ends.get(optimum.best, "")
    if optimum.incomplete:
        tuning = f"a run that may have been better is missing: {optimum.cause}"
    elif 0 < len(optimum.common) < len(optimum.metric):
        tuning = f"{label(view.axis)} chosen on seed {numbers(optimum.common)} of {len(optimum.metric)}"
    chosen = cell[cell[view.axis] == optimum.best]
    return _Choice(keys, chosen, optimum.best, edge, tuning, optimum.lacks, optimum.seeds)


@cells(Optima)
def optima_cells(context: Context, name: str) -> list[RunsOfRow]:
    """The runs of each configuration at its optimum."""
    view, place = context.table_view(Optima, name)
    chosen = select(context.runs, view.where, place)
    optima = context.optima(name)
    return [
        (dict(optimum.keys), cell if optimum.best is None else cell[cell[view.axis] == optimum.best])
        for optimum, (_, cell) in zip(optima, groups(chosen, view.by), strict=True)
    ]


@table(Optima)
def optima(context: Context, name: str) -> pd.DataFrame:
    """The optimum of each sweep, what ties with it, and its ratio to the baseline's."""
    view, _ = context.table_view(Optima, name)
    return pd.DataFrame([_optimum_row(optimum, view) for optimum in context.optima(name)])


def _optimum_row(optimum: Optimum, view: Optima) -> dict[str, Any]:
    axis = view.axis
    low, high = optimum.between
    ratio_low, ratio_high = optimum.ratio_between
    one_seed = len(optimum.metric) < 2
    row: dict[str, Any] = {**optimum.keys, f"best_{axis}": optimum.best}
    row |= {f"best_{axis}_low": low, f"best_{axis}_high": high, "edge": optimum.edge}
    row |= interval_columns(view.metric, estimate(list(optimum.metric.values())) if optimum.metric else None)
    row |= {f"runner_up_{axis}": optimum.runner_up, **interval_columns("gap", optimum.gap)}
    row |= {"tie": "" if optimum.best is None else "one seed" if one_seed else "yes" if optimum.tied[1:] else "no"}
    row |= {f"tied_{axis}": numbers(optimum.tied), f"best_{axis}_by_seed": numbers(optimum.by_seed.values())}
    row |= {"ratio": optimum.ratio, "ratio_low": ratio_low, "ratio_high": ratio_high, "ratios": numbers(optimum.ratios)}
    for column in view.carry:
        row |= interval_columns(column, optimum.carried.get(column))
    row |= {"seeds": len(optimum.metric), "seeds_planned": optimum.seeds}
    return {**row, "status": optimum.status, "cause": optimum.cause}


@table(Settings)
def settings(context: Context, name: str) -> pd.DataFrame:
    """The distinct values of each column over all runs, separated by spaces."""
    view, _ = context.table_view(Settings, name)
    rows = []
    for column in view.columns:
        values = sorted(context.runs[column].dropna().unique()) if column in context.runs else []
        rows.append({"setting": column, "values": numbers(values), "runs": len(context.runs)})
    return pd.DataFrame(rows)


@table(Coverage)
def coverage(context: Context, name: str) -> pd.DataFrame:
    """The document's grid against the runs: what is there, what was dropped at this scale, what was added."""
    view, place = context.table_view(Coverage, name)
    need_columns(context.runs, [*view.by, view.axis], place)
    document: dict[tuple[Any, ...], set[float]] = {}
    for product in view.grid:
        axes = {key: value if isinstance(value, tuple) else (value,) for key, value in product.items()}
        for values in itertools.product(*axes.values()):
            point = dict(zip(axes, values, strict=True))
            document.setdefault(tuple(point.get(key) for key in view.by), set()).add(float(str(point[view.axis])))
    ours = {tuple(keys.values()): rows for keys, rows in groups(context.runs, view.by)}
    rows = []
    for key in [*document, *(key for key in ours if key not in document)]:
        wanted, cell = document.get(key, set()), ours.get(key)
        there = set() if cell is None else set(cell[view.axis].astype(float))
        row = dict(zip(view.by, key, strict=True))
        row |= {"document": numbers(sorted(wanted)), "here": numbers(sorted(there))}
        row |= {"dropped": numbers(sorted(wanted - there)), "added": numbers(sorted(there - wanted))}
        row |= {"seeds": 0 if cell is None else cell["seed"].nunique()}
        row |= {"runs": 0 if cell is None else len(cell)}
        row |= {"runs_ok": 0 if cell is None else int((cell["status"] == "ok").sum())}
        rows.append(row)
    return pd.DataFrame(rows)
