"""A study's runs as if all had ended well, from its plan: every axis and metric has a column and a value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from lowrank.planning import make_plan
from lowrank.report import build  # noqa: F401 - registers the kinds
from lowrank.report.context import Context
from lowrank.report.opened import open_study
from lowrank.report.views import parse_views
from lowrank.study import load_study

TRAINED = {"best_val_loss": 3.0, "last_val_loss": 3.0, "train_time_s": 1.0, "delta_norm_mean": 1.0}


def planned_runs(study: str, scale: str) -> pd.DataFrame:
    """One row per run of the plan; every metric that an evaluation asks of its arm is 1."""
    plan = make_plan(scale, [study])
    rows: list[dict[str, Any]] = []
    for point in plan["studies"][study]["runs"]:
        entry = plan["runs"][point["run"]]
        row = {
            **point,
            **entry["shown"],
            "pack": entry["pack"],
            "status": "ok",
            "cause": "",
            "device": "cpu",
            **TRAINED,
        }
        for name in plan["packs"][entry["pack"]]["evaluations"]:
            asked = plan["evaluations"][name]
            row |= {f"{asked['labels'][study]}_{metric}": 1.0 for metric in asked["metrics"]}
        rows.append(row)
    return pd.DataFrame(rows)


def planned_context(study: str, scale: str, folder: Path) -> Context:
    """The study's views over those runs."""
    planned_runs(study, scale).to_csv(folder / "runs.csv", index=False)
    views = parse_views(load_study(study).model_dump(), study)
    return open_study(study, views, folder / "runs.csv", folder, scale)
