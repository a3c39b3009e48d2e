"""What stands behind a verdict: the rows of our tables, and the runs of those rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lowrank.report.context import Context
from lowrank.report.frame import select
from lowrank.report.kinds import ClaimView


def rows_behind(context: Context, view: ClaimView) -> list[int]:
    """The rows of its table that a claim speaks of, counted from 0; none where it rests on no table."""
    name = getattr(view, "table", None)
    if name is None:
        return []
    table = context.table(name).reset_index(drop=True)
    found: set[int] = set()
    for where in view.rests_on():
        # A column that this table has not is empty in each of its rows.
        known = table.reindex(columns=list(dict.fromkeys([*table.columns, *where])))
        found |= {int(index) for index in select(known, where, name).index}
    return sorted(found)


def runs_behind(context: Context, table: str | None, rows: Sequence[int]) -> list[str]:
    """The finished runs of some rows of a table; none where no run stands behind its rows."""
    if table is None or not rows:
        return []
    frame, cells = context.table(table), context.cells(table)
    if cells is not None:
        runs: list[Any] = [run for row in rows for run in cells[row][1].query("status == 'ok'")["run"]]
    else:
        runs = list(frame["run"].iloc[list(rows)].dropna()) if "run" in frame else []
    return list(dict.fromkeys(map(str, runs)))
