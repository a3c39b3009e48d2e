"""The kinds of tables: each turns a study's runs into a data frame."""

from __future__ import annotations

import itertools
from typing import Any

import pandas as pd

from lowrank.report.context import Context, table
from lowrank.report.frame import by_seed, groups, need_columns, select, state, with_metrics
from lowrank.report.kinds import Coverage, Optima, Settings, Summary
from lowrank.report.optima import Optimum
from lowrank.report.stats import Estimate, estimate
from lowrank.report.text import numbers


def _view(context: Context, name: str) -> Any:
    return context.views.tables[name]


def _place(context: Context, name: str) -> str:
    return f"{context.study}: tables.{name}"


def _interval(name: str, found: Estimate | None) -> dict[str, float | None]:
    if found is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


@table(Summary)
def summary(context: Context, name: str) -> pd.DataFrame:
    """Mean and t interval over seeds of each metric, one row per combination of `by`."""
    view: Summary = _view(context, name)
    runs = select(context.runs, view.where, _place(context, name))
    need_columns(runs, list(view.by), _place(context, name))
    runs = with_metrics(runs, view.metrics, _place(context, name))
    rows = []
    for keys, cell in groups(runs, view.by):
        row: dict[str, Any] = dict(keys)
        for metric in view.metrics:
            values = list(by_seed(cell, metric).values())
            row |= _interval(metric, estimate(values) if values else None)
        status, cause = state(cell)
        row |= {"seeds": int((cell["status"] == "ok").sum()), "seeds_planned": len(cell)}
        rows.append({**row, "status": status, "cause": cause})
    return pd.DataFrame(rows)


@table(Optima)
def optima(context: Context, name: str) -> pd.DataFrame:
    """The optimum of each sweep, what ties with it, and its ratio to the baseline's."""
    view: Optima = _view(context, name)
    return pd.DataFrame([_optimum_row(optimum, view) for optimum in context.optima(name)])


def _optimum_row(optimum: Optimum, view: Optima) -> dict[str, Any]:
    axis = view.axis
    low, high = optimum.between
    ratio_low, ratio_high = optimum.ratio_between
    one_seed = len(optimum.metric) < 2
    row: dict[str, Any] = {**optimum.keys, f"best_{axis}": optimum.best}
    row |= {f"best_{axis}_low": low, f"best_{axis}_high": high, "edge": optimum.edge}
    row |= _interval(view.metric, estimate(list(optimum.metric.values())) if optimum.metric else None)
    row |= {f"runner_up_{axis}": optimum.runner_up, **_interval("gap", optimum.gap)}
    row |= {"tie": "" if optimum.best is None else "one seed" if one_seed else "yes" if optimum.tied[1:] else "no"}
    row |= {f"tied_{axis}": numbers(optimum.tied), f"best_{axis}_by_seed": numbers(optimum.by_seed.values())}
    row |= {"ratio": optimum.ratio, "ratio_low": ratio_low, "ratio_high": ratio_high, "ratios": numbers(optimum.ratios)}
    for column in view.carry:
        row |= _interval(column, optimum.carried.get(column))
    row |= {"seeds": len(optimum.metric), "seeds_planned": optimum.seeds}
    return {**row, "status": optimum.status, "cause": optimum.cause}


@table(Settings)
def settings(context: Context, name: str) -> pd.DataFrame:
    """The distinct values of each column over all runs, separated by spaces."""
    rows = []
    for column in _view(context, name).columns:
        values = sorted(context.runs[column].dropna().unique()) if column in context.runs else []
        rows.append({"setting": column, "values": numbers(values), "runs": len(context.runs)})
    return pd.DataFrame(rows)


@table(Coverage)
def coverage(context: Context, name: str) -> pd.DataFrame:
    """The document's grid against the runs: what is there, what was dropped at this scale, what was added."""
    view: Coverage = _view(context, name)
    need_columns(context.runs, [*view.by, view.axis], _place(context, name))
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
