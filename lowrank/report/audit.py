"""The document held against itself: its curves against its ratios, its sentences against both."""

from __future__ import annotations

from typing import Any

import pandas as pd

from lowrank.report.context import Context, table
from lowrank.report.frame import meets
from lowrank.report.judging import combine
from lowrank.report.kinds import DocumentCurves, RatioClaim
from lowrank.report.optimum import same_ratio
from lowrank.report.text import number, numbers
from lowrank.report.verdicts import Finding


def against_itself(context: Context, claim: str) -> Finding | None:
    """A sentence about ratios against the ratios that its own document prints; None where it prints none."""
    view = context.views.claims[claim]
    if not isinstance(view, RatioClaim) or view.stated is None:
        return None
    parts = []
    for case in view.cases:
        for entry in context.ledger.artefact(view.stated).entries:
            row = dict(entry.cell.row) if entry.cell else {}
            if row.get("alpha") and row.get("rank"):
                row["alpha_over_rank"] = float(str(row["alpha"])) / float(str(row["rank"]))
            if isinstance(entry.value, int | float) and all(meets(row.get(k), c) for k, c in case.where.items()):
                held = same_ratio(entry.value, case.ratio) == case.holds
                where = f"rank {row['rank']}, alpha {row['alpha']} has {number(entry.value)}×"
                parts.append(Finding("reproduced" if held else "differs", where))
    return combine(parts, ()) if parts else None


@table(DocumentCurves)
def document_curves(context: Context, name: str) -> pd.DataFrame:
    """The optima of the document's own curves, against the ratios it states elsewhere.

    Two points of a curve are tied where reading them from the image cannot tell them apart: their
    difference is at most twice the reading accuracy.
    """
    view, _ = context.table_view(DocumentCurves, name)
    curves: dict[tuple[Any, ...], dict[float, tuple[float, float]]] = {}
    names: dict[tuple[Any, ...], tuple[str, dict[str, Any]]] = {}
    for artefact in view.curves:
        for entry in context.ledger.artefact(artefact).entries:
            if entry.cell is None or not isinstance(entry.value, int | float):
                continue
            keys = {key: value for key, value in entry.cell.row.items() if key != view.axis}
            key = (artefact, *keys.items())
            names[key] = (artefact, keys)
            curves.setdefault(key, {})[float(str(entry.cell.row[view.axis]))] = (entry.value, entry.reading)
    tied = {key: _within_reading(points) for key, points in curves.items()}
    base = next(tied[key] for key, (_, keys) in names.items() if view.baseline.items() <= keys.items())
    rows = []
    for key, (artefact, keys) in names.items():
        best = min(curves[key], key=lambda value: curves[key][value][0])
        ratios = sorted({value / other for value in tied[key] for other in base})
        stated = _stated(context, view, keys)
        agrees = "" if stated is None else "yes" if any(same_ratio(stated, ratio) for ratio in ratios) else "no"
        if agrees == "yes" and len(ratios) > 1:
            agrees = "cannot be told"
        row = {"artefact": artefact, **keys, f"best_{view.axis}": best, f"tied_{view.axis}": numbers(tied[key])}
        rows.append({**row, "ratios": numbers(ratios), "stated_ratio": stated, "agrees": agrees})
    return pd.DataFrame(rows)


def _within_reading(points: dict[float, tuple[float, float]]) -> list[float]:
    lowest, accuracy = min(points.values())
    return sorted(x for x, (value, reading) in points.items() if value - lowest <= accuracy + reading + 1e-9)


def _stated(context: Context, view: DocumentCurves, keys: dict[str, Any]) -> float | None:
    for entry in context.ledger.artefact(view.stated).entries:
        if entry.cell is not None and keys.items() <= entry.cell.row.items() and isinstance(entry.value, int | float):
            return float(entry.value)
    return None
