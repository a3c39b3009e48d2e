"""Everything that is computed from a study's runs: tables, figures, and a verdict on each published number."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from lowrank.files import write_json, write_text
from lowrank.report import (  # noqa: F401 - importing registers the kinds
    analytic,
    audit,
    bars,
    checks,
    comparisons,
    course,
    curves,
    dataflow,
    figures,
    pivot,
    records,
    reshape,
    scatter,
    style,
    tables,
    words,
)
from lowrank.report.audit import against_itself
from lowrank.report.context import Context
from lowrank.report.export import write_results
from lowrank.report.frame import state
from lowrank.report.html import table_fragment
from lowrank.report.kinds import Summary
from lowrank.report.ledger import Ledger
from lowrank.report.opened import RUNS
from lowrank.report.seeds import left_out, spread
from lowrank.report.verdicts import VERDICTS, decide, reproduced
from lowrank.report.views import Views


def count_study(study: str, views: Views, out: Path) -> None:
    """Writes the tables (`.csv`) of a study that follow from shapes alone; it needs torch and no run.

    Args:
        study: its name.
        views: from `parse_views`.
        out: the folder to write to.
    """
    empty = Ledger.model_construct(study=study, document="", artefacts=())
    context = Context(study, "", views, empty, pd.DataFrame(), RUNS, out)
    for name in views.counted():
        _write(context.table(name), out, name)


def build_study(context: Context) -> dict[str, Any]:
    """Writes every table (`.csv`, `.html`), figure (`.svg`, `.png`) and `claims.json` of a study.

    Args:
        context: the study, opened; a table that it holds already is not computed again.

    Returns:
        What `claims.json` holds.

    Raises:
        ConfigError: a view names a column that is not there.
        IntegrityError: a file of the runs is missing.
    """
    views, out, written = context.views, context.out, set(context.tables)
    for name, view in views.tables.items():
        frame = context.table(name)
        if name not in written:
            _write(frame, out, name)
        write_text(out / f"{name}.html", table_fragment(frame, view, views.columns()))
        if isinstance(view, Summary) and view.results_json:
            write_results(context.runs, view.by, context.run_folders, out)
    for name in views.figures:
        style.save(context.draw(name), out / name)
    record = verdicts(context)
    write_json(out / "claims.json", record)
    return record


def _write(frame: pd.DataFrame, out: Path, name: str) -> None:
    write_text(out / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n"))


def verdicts(context: Context) -> dict[str, Any]:
    """The record of a study: its runs, and each published number beside ours."""
    entries = []
    without = left_out(context)
    for artefact, entry in context.ledger.entries():
        record = decide(context, artefact, entry)
        record["without_seed"] = without.get(entry.claim or "")
        own = against_itself(context, entry.claim) if entry.claim else None
        record["document"] = own and {"verdict": own.verdict, "cause": own.cause}
        entries.append(record)
    counts = Counter(entry["verdict"] for entry in entries)
    status, cause = state(context.runs)
    return {
        "study": context.study,
        "scale": context.scale,
        "runs": {"planned": len(context.runs), "status": status, "cause": cause}
        | {name: int(number) for name, number in context.runs["status"].value_counts().items()},
        "artefacts": {artefact.id: artefact.title for artefact in context.ledger.artefacts},
        "counts": {verdict: counts[verdict] for verdict in VERDICTS},
        "reproduced": reproduced(context.views, entries),
        "shares": {verdict: counts[verdict] / len(entries) if entries else None for verdict in VERDICTS},
        "cost": cost(context),
        "spread": spread(context),
        "entries": entries,
    }


def cost(context: Context) -> dict[str, Any]:
    """What the runs took, as they recorded it: seconds of training, bytes on disk, machines and commits."""
    runs = context.runs
    seconds = float(runs["train_time_s"].sum()) if "train_time_s" in runs else 0.0
    folders = [context.run_folders / str(run) for run in runs["run"]]
    files = [path for folder in folders if folder.is_dir() for path in folder.rglob("*") if path.is_file()]
    distinct = {
        f"{column}s": sorted(map(str, runs[column].dropna().unique())) if column in runs else []
        for column in ("device", "commit")
    }
    timed = int(runs["train_time_s"].notna().sum()) if "train_time_s" in runs else 0
    disk = sum(path.stat().st_size for path in files)
    return {"train_time_s": seconds, "timed": timed, "disk_bytes": disk, **distinct}
