"""Whether a published number or sentence holds, and why one cannot say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pandas as pd

from lowrank.report.behind import rows_behind, runs_behind
from lowrank.report.context import Context
from lowrank.report.frame import plain, select
from lowrank.report.kinds import CellRef, Optima
from lowrank.report.ledger import Artefact, Entry
from lowrank.report.text import rate
from lowrank.report.views import Views

Verdict = Literal["reproduced", "differs", "not resolved", "by construction", "not comparable", "not run", "impossible"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True)
class Finding:
    """A verdict, its cause in one sentence, and the numbers it rests on."""

    verdict: Verdict
    cause: str
    evidence: tuple[str, ...] = ()


def decide(context: Context, artefact: Artefact, entry: Entry) -> dict[str, Any]:
    """The record of one published number: what the document says, what we have, and the verdict."""
    ours, found = _claim(context, entry) if entry.claim else _cell(context, entry)
    place = _place(context, entry)
    record: dict[str, Any] = {"id": entry.id, "artefact": artefact.id, "line": entry.line, "kind": entry.kind}
    record |= {"published": entry.value, "reading": entry.reading, "note": entry.note, "ours": ours}
    record |= {"cell": entry.cell.model_dump() if entry.cell else None, "claim": entry.claim}
    record |= place
    return record | {"verdict": found.verdict, "cause": found.cause, "evidence": list(found.evidence)}


def reproduced(views: Views, entries: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many of a study's reproduced entries rest on what runs measured, and how many were computed.

    Args:
        views: of the study.
        entries: of its `claims.json`.
    """
    of_runs = [views.from_runs(entry["table"]) for entry in entries if entry["verdict"] == "reproduced"]
    return {"measured": sum(of_runs), "computed": len(of_runs) - sum(of_runs)}


def told(verdict: str, count: int, split: Mapping[str, int]) -> str:
    """`24 reproduced (9 measured, 15 computed)`, `3 differs`."""
    parts = f" ({split['measured']} measured, {split['computed']} computed)" if verdict == "reproduced" else ""
    return f"{count} {verdict}{parts}"


def _place(context: Context, entry: Entry) -> dict[str, Any]:
    """The table that an entry rests on, its rows there (counted from 0), their runs; for a cell, its interval."""
    if entry.cell is None:
        view = context.views.claims[str(entry.claim)]
        table, rows = getattr(view, "table", None), rows_behind(context, view)
        runs = runs_behind(context, table, rows)
        return {"table": table, "rows": rows, "runs": runs, "ours_low": None, "ours_high": None}
    row = find_row(context.table(entry.cell.table), entry.cell)
    ends = {
        f"ours_{end}": plain(row.get(f"{entry.cell.column}_{end}")) if row is not None else None
        for end in ("low", "high")
    }
    rows = [] if row is None else [int(str(row.name))]
    return {"table": entry.cell.table, "rows": rows, "runs": runs_behind(context, entry.cell.table, rows), **ends}


def published(entry_value: Any, reading: float) -> str:
    """A published value as text: 0.268 ± 0.003, 0.316 to 0.325, or the sentence itself."""
    if entry_value is None:
        return "not shown"
    if isinstance(entry_value, tuple | list):
        return " to ".join(f"{value:g}" for value in entry_value)
    if isinstance(entry_value, str):
        return entry_value
    if not reading:
        return rate(entry_value) if entry_value < 0.01 else f"{entry_value:.4g}"
    # A value read to 0.003 has three decimals, its zeros included.
    return f"{entry_value:.{3 if round(entry_value, 3) == entry_value else 4}f} ± {reading:g}"


def _claim(context: Context, entry: Entry) -> tuple[None, Finding]:
    assert entry.claim is not None
    if entry.kind == "directional" and context.scale == "smoke":
        return None, Finding("not comparable", "smoke scale: tiny random models and a handful of rows")
    return None, context.check(entry.claim)


def _cell(context: Context, entry: Entry) -> tuple[Any, Finding]:
    assert entry.cell is not None
    row = find_row(context.table(entry.cell.table), entry.cell)
    ours = None if row is None else plain(row[entry.cell.column])
    if entry.value is None:
        return ours, Finding("impossible", "the document does not show this number")
    beyond = _beyond(context, entry)
    if beyond:
        return ours, Finding("impossible", beyond)
    if entry.kind == "numeric" and context.scale != "paper":
        return ours, Finding("not comparable", f"a number of the paper's scale; this is {context.scale} scale")
    if row is None:
        return ours, Finding("not run", "no run of this configuration at this scale")
    status = str(row.get("status", "ok"))
    if ours is None:
        return ours, Finding("differs" if status == "diverged" else "not run", str(row.get("cause", "")) or "no value")
    if status in ("partial", "missing", "failed") and _incomplete(row):
        return ours, Finding("not resolved", str(row["cause"]))
    if entry.cell.column == "ratio" and "tie" in row and row["tie"] != "no":
        why = "one seed" if row["tie"] == "one seed" else f"tied learning rates allow the ratios {row['ratios']}"
        return ours, Finding("not resolved", why)
    if entry.among:
        return ours, _setting(entry, str(ours).split())
    return ours, _number(context, entry, row)


def _beyond(context: Context, entry: Entry) -> str:
    """Which bound the published value breaks, read and rounded as it is; empty where it breaks none."""
    if isinstance(entry.value, str) or entry.value is None:
        return ""
    low, high = entry.value if isinstance(entry.value, tuple) else (entry.value, entry.value)
    slack = entry.reading + (entry.tolerance or 0.0)
    for limit, words in ((entry.at_most, "at most"), (entry.at_least, "at least")):
        row = None if limit is None else find_row(context.table(limit.table), limit)
        bound = None if row is None or limit is None else plain(row[limit.column])
        if bound is None:
            continue
        if (low - slack > bound) if limit is entry.at_most else (high + slack < bound):
            return f"{words} {bound:.6g} is possible"
    return ""


def _incomplete(row: pd.Series[Any]) -> bool:
    # An optimum whose sweep holds a diverged run is whole: divergence is a result.
    missing = "missing" in str(row["cause"]) or "failed" in str(row["cause"])
    return missing or bool("seeds" in row and row["seeds"] < row["seeds_planned"])


def find_row(table: pd.DataFrame, cell: CellRef) -> pd.Series[Any] | None:
    """The one row that a cell names, or None.

    Raises:
        ConfigError: the table has no such column.
    """
    kept = select(table, {column: (value,) for column, value in cell.row.items()}, f"cell of {cell.table}")
    assert len(kept) <= 1, f"{cell} names {len(kept)} rows"
    return kept.iloc[0] if len(kept) else None


def _setting(entry: Entry, listed: list[str]) -> Finding:
    held = rate(entry.value) in listed
    return Finding("by construction" if held else "not run", f"set so: the runs have {', '.join(listed) or 'no value'}")


def _number(context: Context, entry: Entry, row: pd.Series[Any]) -> Finding:
    """A number against what is allowed: with its whole interval where runs measured it, else as it is."""
    assert entry.cell is not None
    assert isinstance(entry.value, int | float | tuple)
    column = entry.cell.column
    ours, low, high = (plain(row.get(f"{column}{end}")) for end in ("", "_low", "_high"))
    if context.views.from_runs(entry.cell.table) and (low is None or high is None):
        return Finding("not resolved", "one seed" if f"{column}_low" in row else "no interval over seeds")
    low, high = (ours, ours) if low is None or high is None else (low, high)
    # An untied ratio of a grid is exact on that grid; its interval is what lies between the grid's values.
    of_grid = column == "ratio" and isinstance(context.views.tables[entry.cell.table], Optima)
    inner = (ours, ours) if of_grid else (low, high)
    least, most = _allowed(entry)
    interval = "" if low == high else f" [{low:.7g}, {high:.7g}]"
    cause = f"{ours:.7g}{interval}, allowed {least:.7g}" + (f" to {most:.7g}" if most > least else " exactly")
    if inner[0] >= least and inner[1] <= most:
        return Finding("reproduced", cause)
    return Finding("differs" if high < least or low > most else "not resolved", cause)


def _allowed(entry: Entry) -> tuple[float, float]:
    assert isinstance(entry.value, int | float | tuple)
    low, high = entry.value if isinstance(entry.value, tuple) else (entry.value, entry.value)
    if entry.factor is not None:
        return low / entry.factor, high * entry.factor
    assert entry.tolerance is not None
    slack = entry.tolerance + entry.reading
    return low - slack, high + slack
