"""A study's results, opened: what its tables, figures, claims and page are made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from lowrank.report.context import Context
from lowrank.report.frame import read_runs
from lowrank.report.ledger import REPORTED, load_ledger
from lowrank.report.views import Views

RUNS = Path("results/runs")


def open_study(
    study: str,
    views: Views,
    runs_csv: Path,
    out: Path,
    scale: str,
    *,
    reported: Path = REPORTED,
    runs: Path = RUNS,
    asked: Mapping[str, str] | None = None,
    written: Iterable[str] | None = None,
) -> Context:
    """Reads what a study's views are computed from.

    Args:
        study: its name.
        views: from `parse_views`.
        runs_csv: one row per run.
        out: where its tables, figures and claims lie.
        scale: smoke, laptop or paper.
        reported: where the published numbers lie.
        runs: where run folders lie.
        asked: label of an evaluation -> its id.
        written: tables that are read from `out`, not computed; where None, those that `count_study` wrote there.
    """
    if written is None:
        written = [name for name in views.counted() if (out / f"{name}.csv").is_file()]
    tables = {name: read_table(out / f"{name}.csv") for name in written}
    ledger = load_ledger(study, reported)
    return Context(study, scale, views, ledger, read_runs(runs_csv), runs, out, tables, asked or {})


def read_table(path: Path) -> pd.DataFrame:
    """A table as it was written: only an empty cell has no value, and numbers are what they were to the last bit."""
    frame = pd.read_csv(path, keep_default_na=False, na_values=[""], float_precision="round_trip")
    texts = [column for column, kind in frame.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]
    return frame.fillna(dict.fromkeys(texts, ""))
