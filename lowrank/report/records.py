"""Rows that evaluations and observers recorded, such as generated samples or ranks after each merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from lowrank.files import read_json
from lowrank.report.context import Context, table
from lowrank.report.frame import need_columns, plain, select
from lowrank.report.kinds import Records
from lowrank.run_folder import EVALUATIONS, OBSERVED


@table(Records)
def records(context: Context, name: str) -> pd.DataFrame:
    """Every recorded row beside its run's `by`, `seed` and `run`; a run without any has one row that says why."""
    view, place = context.table_view(Records, name)
    runs = select(context.runs_at(view.at), view.where, place)
    need_columns(runs, list(view.by), place)
    found = []
    columns = list(dict.fromkeys((*view.by, "seed", "run")))
    for run in runs.to_dict("records"):
        keys = {column: plain(run[column]) for column in columns}
        folder = context.run_folders / str(run["run"])
        rows = _evaluated(context, view, folder) if view.evaluation else _observed(folder, str(view.observer))
        cause = "" if rows else str(run["cause"] or "") or "nothing recorded"
        found += [{**keys, **row, "status": run["status"], "cause": cause} for row in rows or [{}]]
    recorded = [column for row in found for column in row]  # columns that are shown are there without a row too
    return pd.DataFrame(found, columns=list(dict.fromkeys([*columns, *recorded, *view.show, "status", "cause"])))


def _evaluated(context: Context, view: Records, folder: Path) -> list[dict[str, Any]]:
    """The rows of the evaluation that the study asks for; a run may have been scored under others too."""
    path = folder / EVALUATIONS / f"{context.asked.get(str(view.evaluation))}.json"
    return list(read_json(path).get("records", [])) if path.is_file() else []


def _observed(folder: Path, observer: str) -> list[dict[str, Any]]:
    path = folder / OBSERVED / f"{observer}.json"
    return list(read_json(path)) if path.is_file() else []
