"""One metric of a table, turned so that a column's values become columns."""

from __future__ import annotations

from typing import Any

import pandas as pd

from lowrank.errors import ConfigError
from lowrank.report.context import Context, table
from lowrank.report.frame import groups, need_columns, plain, select
from lowrank.report.kinds import Pivot
from lowrank.report.style import place as place_of
from lowrank.report.text import configuration, rate


@table(Pivot)
def pivot(context: Context, name: str) -> pd.DataFrame:
    """One row per combination of `rows`, one column per value of `columns`, the intervals beside them.

    A cell that its table leaves empty stays empty, and `cause` says why.
    """
    view, place = context.table_view(Pivot, name)
    frame = select(context.table(view.table), view.where, place)
    need_columns(frame, [*view.rows, view.columns, view.metric], place)
    found = []
    heads = sorted(frame[view.columns].dropna().unique(), key=lambda head: _order(view.columns, head))
    for keys, cells in groups(frame, view.rows):
        row: dict[str, Any] = dict(keys)
        causes = []
        for head in heads:
            there = cells[cells[view.columns] == head].to_dict("records")
            if len(there) > 1:
                raise ConfigError(
                    f"{place}: {configuration({**keys, view.columns: head})} names {len(there)} rows of "
                    f"{view.table!r}, allowed: one; narrow `where` or add to `rows`"
                )
            cell = there[0] if there else {}
            for end in ("", "_low", "_high"):
                if f"{view.metric}{end}" in frame:
                    row[f"{rate(head)}{end}"] = plain(cell.get(f"{view.metric}{end}"))
            if cell and cell.get("cause"):
                causes.append(f"{rate(head)}: {cell['cause']}")
        found.append({**row, "cause": "; ".join(causes)})
    return pd.DataFrame(found)


def _order(column: str, head: Any) -> tuple[Any, ...]:
    return place_of(head) if column == "arm" else (head,)
