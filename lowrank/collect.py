"""One row per run of a study: what every table, figure and claim is computed from."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from lowrank.errors import IntegrityError
from lowrank.files import MANIFEST, read_json, write_text
from lowrank.run_folder import EVALUATIONS, RUNS
from lowrank.spec import RunSpec


def collect(plan: dict[str, Any], study: str, out: Path, runs: Path = RUNS) -> list[dict[str, Any]]:
    """Writes `runs.csv` and returns its rows. A run that is not there is a row that says so.

    Runs of the target `extended` are rows once they are there.

    Args:
        plan: from `lowrank.plan`.
        study: its name.
        out: the CSV file.
        runs: where runs lie.
    """
    asked = [point for point in plan["studies"][study]["runs"] if _expected(plan["runs"][point["run"]], point, runs)]
    rows = [_row(plan, study, point, runs) for point in asked]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    write_text(out, text.getvalue())
    return rows


def shown(spec: RunSpec, model_title: str, data_title: str) -> dict[str, Any]:
    """What the plan tells of a run for its row, swept or not."""
    return {
        "task": spec.task,
        "data_card": spec.data.card,
        "lr": spec.train.lr,
        "model_title": model_title,
        "data_title": data_title,
        "epochs": spec.train.epochs,
        "batch_size": spec.train.batch_size,
    }


def _expected(entry: dict[str, Any], point: dict[str, Any], runs: Path) -> bool:
    return not entry["extended"] or (runs / point["run"] / MANIFEST).exists()


def _row(plan: dict[str, Any], study: str, point: dict[str, Any], runs: Path) -> dict[str, Any]:
    run = point["run"]
    entry = plan["runs"][run]
    row: dict[str, Any] = {
        "arm": point["arm"],
        "run": run,
        "pack": entry["pack"],
        "status": "missing",
        "cause": "",
        **{axis: value for axis, value in point.items() if axis not in ("arm", "run")},
        **entry["shown"],
    }
    try:
        manifest = read_json(runs / run / MANIFEST)
    except IntegrityError as error:
        return {**row, "cause": f"not trained: {error}"}
    device = manifest["provenance"]["device"]
    row |= {"status": manifest["status"], "cause": manifest["cause"] or "", **manifest["metrics"]}
    name = device.get("gpu") or device.get("cpu_model")
    count = manifest["provenance"].get("processes", 1)  # seconds of one and of several are not compared
    row |= {"device": f"{count} x {name}" if count > 1 else name, "commit": manifest["provenance"]["commit"]}
    for name in plan["packs"][entry["pack"]]["evaluations"]:
        asked = plan["evaluations"][name]
        label = asked["labels"].get(study)
        if label is None:  # another study's, of a run that both have
            continue
        try:
            record = read_json(runs / run / EVALUATIONS / f"{name}.json")
        except IntegrityError as error:
            if row["status"] == "ok":
                row |= {"status": "failed", "cause": f"not scored: {error}"}
            continue
        if record["status"] != "ok" and row["status"] == "ok":
            row |= {"status": record["status"], "cause": record["cause"] or ""}
        row |= {f"{label}_{score}": record["metrics"].get(score) for score in asked["metrics"]}
    return row
