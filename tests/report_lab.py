"""A study in a few lines for the tests of report kinds: runs as rows, views as YAML would say them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from lowrank.report import build  # noqa: F401 - registers the kinds
from lowrank.report.context import Context
from lowrank.report.ledger import Ledger
from lowrank.report.views import parse_views

SUMMARY = {"kind": "summary", "title": "t", "note": "n", "by": ["arm"], "metrics": ["accuracy"]}
TUNED = {"kind": "tuned", "title": "t", "note": "n", "by": ["arm"], "axis": "lr", "choose_by": "val_loss"}
TUNED |= {"metrics": ["accuracy"]}


def runs_of(**arms: list[float] | dict[float, list[float]]) -> pd.DataFrame:
    """Runs with an `accuracy` by seed; where an arm maps learning rates to lists, with `val_loss` = 1 - accuracy."""
    rows = []
    for arm, given in arms.items():
        for lr, values in (given if isinstance(given, dict) else {None: given}).items():
            for seed, value in enumerate(values):
                row = {"arm": arm, "run": f"{arm}-lr{lr}-s{seed}", "pack": arm, "status": "ok", "cause": "", "lr": lr}
                rows.append({**row, "seed": seed, "steps": 10, "accuracy": value, "val_loss": 1 - value})
    return pd.DataFrame(rows)


def study(runs: pd.DataFrame, folder: Path = Path(), scale: str = "laptop", **views: Any) -> Context:
    """The context of a study with these runs and views (`tables=`, `figures=`, `claims=`)."""
    ledger = Ledger.model_construct(study="lab", document="d.md", artefacts=())
    return Context("lab", scale, parse_views(views, "lab"), ledger, runs, folder / "runs", folder)
