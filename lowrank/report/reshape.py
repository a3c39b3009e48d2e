"""Tables made from the columns and rows of others."""

from __future__ import annotations

from typing import Any

import pandas as pd

from lowrank.errors import ConfigError
from lowrank.report.context import Context, table
from lowrank.report.frame import groups, need_columns, plain, select
from lowrank.report.kinds import Averages, Unpivot


@table(Unpivot)
def unpivot(context: Context, name: str) -> pd.DataFrame:
    """One row per row and stem, with the metrics of the stem, their intervals where the table has some, and causes."""
    view, place = context.table_view(Unpivot, name)
    frame = select(context.table(view.table), view.where, place)
    need_columns(frame, [*view.keep, *(f"{stem}_{metric}" for stem in view.stems for metric in view.metrics)], place)
    beside = [column for column in ("seeds", "seeds_planned", "status", "cause") if column in frame]
    ends = [f"{metric}{end}" for metric in view.metrics for end in ("", "_low", "_high")]
    rows: list[dict[str, Any]] = []
    for record in frame.to_dict("records"):
        for stem, shown in view.stems.items():
            found = {end: plain(record[f"{stem}_{end}"]) for end in ends if f"{stem}_{end}" in record}
            kept = {column: plain(record[column]) for column in view.keep}
            rows.append({**kept, view.into: shown, **found, **{column: record[column] for column in beside}})
    return pd.DataFrame(rows, columns=None if rows else [*view.keep, view.into, *view.metrics, *beside])


@table(Averages)
def averages(context: Context, name: str) -> pd.DataFrame:
    """Means over the rows of each group; `rows` counts them, and rows without a value are left out of its mean."""
    view, place = context.table_view(Averages, name)
    frame = context.table(view.table)
    if frame.reindex(columns=list(view.metrics)).isna().all(axis=None):  # no run recorded anything
        return pd.DataFrame(columns=list(dict.fromkeys([*view.by, *view.metrics, *view.show, "rows"])))
    frame = select(frame, view.where, place)
    need_columns(frame, [*view.by, *([view.latest] if view.latest else [])], place)
    if view.latest:
        frame = frame[frame[view.latest] == frame.groupby(list(view.by), dropna=False)[view.latest].transform("max")]
    lists = [metric for metric in view.metrics if frame[metric].map(lambda value: isinstance(value, list)).any()]
    if len(lists) > 1:
        raise ConfigError(f"{place}: metrics {', '.join(lists)} hold lists; allowed: one such column")
    by = list(view.by)
    if lists:
        there = frame[frame[lists[0]].map(lambda value: isinstance(value, list))]
        frame = there.assign(place=there[lists[0]].map(lambda value: list(range(1, len(value) + 1))))
        frame, by = frame.explode([lists[0], "place"]).dropna(subset=["place"]), [*by, "place"]
    rows = [
        {**keys, **{metric: plain(group[metric].astype(float).mean()) for metric in view.metrics}, "rows": len(group)}
        for keys, group in groups(frame, tuple(by))
    ]
    return pd.DataFrame(rows, columns=[*by, *view.metrics, "rows"])
