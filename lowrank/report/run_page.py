"""A page for each run: what was asked, what came out, how it went, and the command that runs it again."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lowrank.errors import IntegrityError
from lowrank.files import MANIFEST, read_json, write_text
from lowrank.report.columns import Columns
from lowrank.report.frame import plain
from lowrank.report.html import cell_text, escape, template
from lowrank.report.spark import curves_svg
from lowrank.report.text import snakemake
from lowrank.run_folder import EVALUATIONS, HISTORY, SPEC, WEIGHTS

FACTS = ("arm", "pack", "status", "cause", "data_title", "model_title", "device")


def run_link(study: str, run: str, text: str) -> str:
    """A link from a study's page to the page of one of its runs."""
    return f'<a href="runs/{escape(study)}/{escape(run)}.html">{escape(text)}</a>'


def render_runs(
    study: str, title: str, rows: Sequence[Mapping[Any, Any]], folder: Path, out: Path, scale: str, columns: Columns
) -> None:
    """Writes `<out>/<run>.html` for every run of a study; pages of runs that are no longer its own go.

    Args:
        study: its name.
        title: its title.
        rows: of `runs.csv`.
        folder: where run folders lie.
        out: the folder of the pages.
        scale: smoke, laptop or paper.
        columns: names and meanings of what was measured.
    """
    shutil.rmtree(out, ignore_errors=True)
    for row in rows:
        run = str(row["run"])
        shown = {"facts": _facts(row, columns), "measured": _measured(row, columns), **_recorded(folder / run)}
        page = template("run").render(
            run=run, study=study, title=title, scale=scale, command=snakemake(scale, study), **shown
        )
        write_text(out / f"{run}.html", page)


def _facts(row: Mapping[Any, Any], columns: Columns) -> list[tuple[str, str]]:
    values = [(name, columns.value(name, plain(row.get(name)))) for name in FACTS]
    return [(columns.heading(name), str(value)) for name, value in values if value not in (None, "")]


def _measured(row: Mapping[Any, Any], columns: Columns) -> list[tuple[str, str, str]]:
    """Every other column that has a value: its name, its value, what it means."""
    names = [name for name in row if name not in (*FACTS, "run", "commit")]
    values = [(name, plain(row[name])) for name in names]
    return [
        (columns.heading(name), cell_text(name, value), columns.definition(name))
        for name, value in values
        if value is not None and value != ""
    ]


def _recorded(folder: Path) -> dict[str, Any]:
    """What the run's folder holds; for a run that is not there, nothing."""
    try:
        manifest, spec = read_json(folder / MANIFEST), read_json(folder / SPEC)
    except IntegrityError:
        return {"spec": "", "curves": [], "provenance": "", "files": [], "evaluations": [], "exportable": False}
    scored = [read_json(path) for path in sorted((folder / EVALUATIONS).glob("*.json"))]
    return {
        "spec": _yaml(spec),
        "curves": _curves(folder / HISTORY),
        "provenance": _yaml({"code": manifest.get("code"), **manifest["provenance"]}),
        "exportable": WEIGHTS in manifest["files"],
        "files": sorted(manifest["files"].items()),
        "evaluations": [
            (record["evaluation"], _yaml({"spec": record["spec"], **record["metrics"]})) for record in scored
        ],
    }


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=88).strip()


def _curves(path: Path) -> list[str]:
    """Losses and learning rate over the steps."""
    import pandas as pd

    if not path.is_file():
        return []
    history = pd.read_parquet(path)

    def points(column: str) -> list[tuple[float, float]]:
        if column not in history:
            return []
        kept = history[history[column].notna()]
        return list(zip(kept["step"].astype(float), kept[column].astype(float), strict=True))

    losses = {"training loss": points("train_loss"), "validation loss": points("val_loss")}
    drawn = [
        curves_svg(losses, "step", "Training and validation loss in nats, over the steps"),
        curves_svg({"learning rate": points("lr")}, "step", "Learning rate over the steps"),
    ]
    return [drawing for drawing in drawn if drawing]
