"""The runs of a study as a data frame: reading, selecting, and saying what is missing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lowrank.errors import ConfigError, IntegrityError
from lowrank.report.kinds import Range, Value, Where
from lowrank.strict import suggest

NEEDED = ("arm", "run", "status", "cause", "seed")


def read_runs(path: Path) -> pd.DataFrame:
    """Reads `runs.csv` and adds what follows from its columns.

    Added: `alpha_over_rank`; `budget`, `main` for the shortest training in the study and `long` for
    any other, so that a view need not know how many epochs a scale affords.

    Raises:
        IntegrityError: no such file, or a column that every study has is missing.
    """
    if not path.is_file():
        raise IntegrityError(f"{path}: no such file")
    runs = pd.read_csv(path).copy()  # as one block: a hundred columns come in a hundred
    absent = [column for column in NEEDED if column not in runs]
    if absent:
        raise IntegrityError(f"{path}: no column {', '.join(absent)}")
    runs["cause"] = runs["cause"].fillna("").astype(str)
    if {"alpha", "rank"} <= set(runs.columns):
        runs["alpha_over_rank"] = runs["alpha"] / runs["rank"]
    runs["budget"] = "main"
    if "epochs" in runs:
        # Where only the longer runs sweep `epochs`, those of the base leave it empty.
        base = 0 if runs["epochs"].isna().any() else runs["epochs"].min()
        runs.loc[runs["epochs"] > base, "budget"] = "long"
    return runs


def select(frame: pd.DataFrame, where: Where | Mapping[str, Any], place: str) -> pd.DataFrame:
    """The rows that meet every condition.

    Raises:
        ConfigError: a condition on a column that is not there.
    """
    kept = pd.Series(True, index=frame.index)
    for column, condition in where.items():
        need_columns(frame, [column], place)
        kept &= _meets(frame[column], condition)
    return frame[kept]


def need_columns(frame: pd.DataFrame, columns: list[str], place: str) -> None:
    """Refuses a column that is not there.

    Raises:
        ConfigError: names it and the nearest one.
    """
    for column in columns:
        if column not in frame:
            raise ConfigError(f"{place}: unknown column {column!r}{suggest(column, map(str, frame.columns))}")


def with_metrics(runs: pd.DataFrame, metrics: tuple[str, ...], place: str) -> pd.DataFrame:
    """The runs with every metric as a column; empty ones where no run has finished, for then none is there.

    Raises:
        ConfigError: runs have finished, and none measured this.
    """
    if (runs["status"] == "ok").any():
        need_columns(runs, list(metrics), place)
    return runs.assign(**{name: float("nan") for name in metrics if name not in runs})


def plain(value: Any) -> Any:
    """A cell of a frame as a plain value; None where there is none."""
    if value is None or pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value


DEVICE_METRIC = re.compile(r"(_s|_ms)$|(peak|rss|cuda|memory)\w*_bytes$")
"""Names of metrics that say as much of the machine as of the method: times, rates, and measured memory."""


def without_mixed_devices(
    runs: pd.DataFrame, metrics: tuple[str, ...], by: tuple[str, ...]
) -> tuple[pd.DataFrame, str]:
    """The runs, times and memory left out where they come from several devices; and the sentence that says so.

    A table with `device` among its `by` says which is which, so nothing is left out.
    """
    of_device = [metric for metric in metrics if DEVICE_METRIC.search(metric)]
    if not of_device or "device" in by or "device" not in runs:
        return runs, ""
    measured = runs[(runs["status"] == "ok") & runs[of_device].notna().any(axis=1)]
    devices = sorted(map(str, measured["device"].dropna().unique()))
    if len(devices) < 2:
        return runs, ""
    why = f"{', '.join(of_device)} left out: measured on several devices ({', '.join(devices)})"
    return runs.assign(**{metric: float("nan") for metric in of_device}), why


def meets(value: Any, condition: Any) -> bool:
    """Whether one value meets a condition of a `where`."""
    return bool(_meets(pd.Series([value]), condition).iloc[0])


def _meets(column: pd.Series[Any], condition: Any) -> pd.Series[bool]:
    if isinstance(condition, Range):
        kept = column.notna()
        for name, compare in (("above", "gt"), ("at_least", "ge"), ("below", "lt"), ("at_most", "le")):
            limit = getattr(condition, name)
            if limit is not None:
                kept &= getattr(column, compare)(limit)
        return kept if condition.other_than is None else kept & (column != condition.other_than)
    allowed = condition if isinstance(condition, list | tuple) else (condition,)
    kept = pd.Series(False, index=column.index)
    for value in allowed:
        kept |= column.isna() if value is None else column == _as(column, value)
    return kept


def _as(column: pd.Series[Any], value: Value) -> Value:
    # YAML reads 1e-4 as a string.
    return float(value) if isinstance(value, str) and pd.api.types.is_numeric_dtype(column) else value


def state(rows: pd.DataFrame) -> tuple[str, str]:
    """What a cell made of these runs is: its status, and why it is not whole.

    `ok` where every run is; the runs' own status where all share it; else `partial`.
    """
    counts = Counter(rows["status"])
    if set(counts) == {"ok"}:
        return "ok", ""
    faults = rows[rows["status"] != "ok"]
    causes = Counter(
        f"{status}: {cause}" if cause else str(status) for status, cause in zip(faults.status, faults.cause)
    )
    shown = [f"{number} of {len(rows)} {cause}" for cause, number in causes.most_common(2)]
    more = [f"and {len(causes) - 2} other causes"] if len(causes) > 2 else []
    return (str(faults.status.iloc[0]) if len(counts) == 1 else "partial"), "; ".join(shown + more)


def by_seed(rows: pd.DataFrame, metric: str) -> dict[int, float]:
    """The metric of each seed that has one."""
    good = rows[(rows["status"] == "ok") & rows[metric].notna()]
    if good["seed"].duplicated().any():
        seeds = sorted(map(int, good["seed"][good["seed"].duplicated()].unique()))
        raise ConfigError(f"several runs share a cell and seed {seeds}: the table's `by` leaves out a swept axis")
    return {int(seed): float(value) for seed, value in zip(good["seed"], good[metric])}


def groups(frame: pd.DataFrame, by: tuple[str, ...], *, sort: bool = True) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """The rows of each combination of `by`, by value or in order of appearance; missing values count."""
    found = []
    for key, rows in frame.groupby(list(by), dropna=False, sort=sort):
        values: tuple[Any, ...] = key if isinstance(key, tuple) else (key,)
        keys = {name: None if pd.isna(value) else value for name, value in zip(by, values)}
        found.append((keys, rows))
    return found
