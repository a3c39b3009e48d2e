"""How much rests on one seed: the spread over seeds of what claims compare, and each verdict with a seed left out."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from lowrank.report.behind import rows_behind
from lowrank.report.context import Context
from lowrank.report.kinds import Optima, OptimaClaim
from lowrank.report.samples import samples

DECIDED = ("reproduced", "differs")


def left_out(context: Context) -> dict[str, dict[str, str]]:
    """Verdicts with one seed left out at a time.

    Returns:
        claim -> seed -> verdict, for claims whose table is made of runs; nothing at smoke scale or for one seed.
    """
    seeds = sorted({int(seed) for seed in context.runs["seed"].dropna()})
    claims = {name: table for name in context.views.claims if (table := _table(context, name)) is not None}
    if context.scale == "smoke" or len(seeds) < 2 or not claims:
        return {}
    found: dict[str, dict[str, str]] = {name: {} for name in claims}
    for seed in seeds:
        # What no run enters stays as it is.
        kept = {name: frame for name, frame in context.tables.items() if not context.measured(name)}
        runs = context.runs[context.runs["seed"] != seed].reset_index(drop=True)
        fewer = dataclasses.replace(context, runs=runs, tables=kept, _cells={}, _optima={})
        for name, table in claims.items():
            nothing = fewer.table(table).empty
            found[name][str(seed)] = "not run" if nothing else fewer.check(name).verdict
    return found


def spread(context: Context) -> list[dict[str, Any]]:
    """One row for each configuration and metric that a claim rests on and several seeds measured.

    Returns:
        `table`, `metric`, `configuration`, `seeds`, `mean`, `sd` (over seeds), `lowest`, `highest`.
    """
    wanted: dict[tuple[str, str], set[int]] = {}
    for name, view in context.views.claims.items():
        table, metric = _table(context, name), _metric(context, name)
        if table is not None and metric is not None:
            wanted.setdefault((table, metric), set()).update(rows_behind(context, view))
    found = []
    for (table, metric), rows in wanted.items():
        for row, one in enumerate(samples(context, table, metric, context.study)):
            values = list(one.values.values())
            if row in rows and len(values) > 1:
                numbers = {"mean": statistics.fmean(values), "sd": statistics.stdev(values)}
                numbers |= {"lowest": min(values), "highest": max(values)}
                keys = {"table": table, "metric": metric, "configuration": one.name, "seeds": len(values)}
                found.append({**keys, **numbers})
    return found


def sensitivity(verdict: str, without: dict[str, str]) -> str:
    """What leaving a seed out does to a verdict: `turns`, `opens`, `settles` or `stays`."""
    others = set(without.values())
    if verdict in DECIDED and others & (set(DECIDED) - {verdict}):
        return "turns"
    if verdict in DECIDED:
        return "stays" if others <= {verdict} else "opens"
    return "settles" if others & set(DECIDED) else "stays"


def _table(context: Context, claim: str) -> str | None:
    """The table of runs that a claim looks at; None where it looks at none."""
    table = getattr(context.views.claims[claim], "table", None)
    return table if table is not None and context.cells(table) is not None else None


def _metric(context: Context, claim: str) -> str | None:
    """The column that a claim looks at."""
    view = context.views.claims[claim]
    if isinstance(view, OptimaClaim):
        return context.table_view(Optima, view.table)[0].metric
    return getattr(view, "metric", None) or getattr(view, "column", None)
