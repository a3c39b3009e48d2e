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
from lowrank.spec import EvalSpec
from lowrank.strict import parse


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
        rows = _evaluated(context, view, folder, place) if view.evaluation else _observed(folder, str(view.observer))
        cause = "" if rows else str(run["cause"] or "") or "nothing recorded"
        found += [{**keys, **row, "status": run["status"], "cause": cause} for row in rows or [{}]]
    recorded = [column for row in found for column in row]  # columns that are shown are there without a row too
    return pd.DataFrame(found, columns=list(dict.fromkeys([*columns, *recorded, *view.show, "status", "cause"])))


def _evaluated(context: Context, view: Records, folder: Path, place: str) -> list[dict[str, Any]]:
    """The rows of the file whose question is the study's; a run may have been scored under others too."""
    asked = context.views.evaluations[str(view.evaluation)]
    spec = parse(EvalSpec, {key: value for key, value in asked.items() if key in EvalSpec.model_fields}, place)
    wanted = spec.model_dump(mode="json", exclude_defaults=True)
    for path in sorted((folder / EVALUATIONS).glob("*.json")):
        record = read_json(path)
        if record.get("spec") == wanted:
            return list(record.get("records", []))
    return []


def _observed(folder: Path, observer: str) -> list[dict[str, Any]]:
    path = folder / OBSERVED / f"{observer}.json"
    return list(read_json(path)) if path.is_file() else []
