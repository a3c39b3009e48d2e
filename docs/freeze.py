"""Copies laptop-scale results into `docs/frozen/` and writes the README's parts that show them.

`make freeze` runs it. Nothing between the README's markers is typed by hand: a test writes them anew
from `docs/frozen/` and compares.
"""

from __future__ import annotations

import html
import re
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd

from lowrank.costs import study_rows
from lowrank.errors import ConfigError, LowrankError
from lowrank.files import read_json, write_json, write_text
from lowrank.gpus import gpu_facts
from lowrank.plan import current_plan
from lowrank.report import style
from lowrank.report.overview import overview
from lowrank.report.text import duration, number, size
from lowrank.report.timings import of_study
from lowrank.report.verdicts import VERDICTS, told
from lowrank.report.views import parse_views
from lowrank.study import load_study, studies

ROOT = Path(__file__).resolve().parents[1]
RESULTS, FROZEN, README = ROOT / "results" / "studies", ROOT / "docs" / "frozen", ROOT / "README.md"

BENCHMARKS = ROOT / "logs" / "benchmarks"

SMOKE = ROOT / "smoke"
"""Where `make smoke` runs."""

OVERVIEW, COSTS = "verdicts", "costs.json"
SCALE = "laptop"
MARKED = re.compile(r"(<!-- frozen:(?P<study>\S+)(?P<figures>[^>]*) -->\n).*?(<!-- /frozen -->)", re.DOTALL)
"""`<!-- frozen:lr_ratio fig1 fig3_ratio -->` ... `<!-- /frozen -->`: a study and the figures to show of it."""

PICTURE, COST = (re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL) for name in ("picture", "cost"))

EVIDENCE_CHARACTERS = 140


def freeze(study: str, results: Path, frozen: Path, took: Mapping[str, Any]) -> None:
    """Copies a study's tables, figures and verdicts, with a record of what they were made from.

    Args:
        study: its name.
        results: holds one folder of results per study.
        frozen: where the copy goes; what was there of the study is replaced.
        took: what its jobs took, from `lowrank.report.timings.of_study`.

    Raises:
        ConfigError: the results are of another scale, or runs are missing.
        IntegrityError: there are no results.
    """
    source, target = results / study, frozen / study
    claims = read_json(source / "claims.json")
    if claims["scale"] != SCALE:
        raise ConfigError(f"{source}: results of scale {claims['scale']!r}; allowed: {SCALE}")
    runs = claims["runs"]
    absent = sum(runs.get(status, 0) for status in ("missing", "failed"))
    if absent:
        raise ConfigError(f"{source}: {absent} of {runs['planned']} runs are missing or failed; allowed: none")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in outputs(study):
        shutil.copyfile(source / name, target / name)
    frame = pd.read_csv(source / "runs.csv")
    facts: dict[str, Any] = {"study": study, "scale": SCALE, "runs": len(frame)}
    facts["took"] = {**took, "disk_bytes": claims["cost"]["disk_bytes"]}
    for fact, column in (("data", "data_title"), ("model", "model_title"), ("device", "device"), ("commit", "commit")):
        facts[fact] = sorted(map(str, frame[column].dropna().unique()))
    facts["date"] = date.fromtimestamp((source / "claims.json").stat().st_mtime).isoformat()
    write_json(target / "facts.json", facts)


def outputs(study: str) -> list[str]:
    """The files of a study that are frozen: all but the HTML fragments of tables."""
    record = load_study(study)
    views = parse_views(record.model_dump(), study)
    return [name for name in views.outputs() if not name.endswith(".html")]


def show(text: str, frozen: Path = FROZEN) -> str:
    """The README with what stands between its markers written anew from the frozen files."""

    def block(match: re.Match[str]) -> str:
        return match[1] + _block(frozen / match["study"], match["figures"].split()) + match[4]

    text = PICTURE.sub(lambda match: match[1] + _picture(frozen) + match[2], text)
    text = COST.sub(lambda match: match[1] + _cost(frozen) + match[2], text)
    return MARKED.sub(block, text)


def counts(frozen: Path) -> dict[str, dict[str, int]]:
    """The verdicts of each frozen study, by its document."""
    return {load_study(study).document: claims["counts"] for study, claims in _claims(frozen).items()}


def _claims(frozen: Path) -> dict[str, dict[str, Any]]:
    files = {study: frozen / study / "claims.json" for study in studies()}
    return {study: read_json(file) for study, file in files.items() if file.is_file()}


def _picture(frozen: Path) -> str:
    verdicts: Counter[str] = Counter()
    split: Counter[str] = Counter()
    for claims in _claims(frozen).values():
        verdicts.update(claims["counts"])
        split.update(claims["reproduced"])
    said = ", ".join(told(verdict, verdicts[verdict], split) for verdict in VERDICTS if verdicts[verdict])
    return (
        f'<img src="docs/frozen/{OVERVIEW}.png" width="100%" alt="Verdicts on the published numbers of each document">'
        f"\n\n{sum(verdicts.values())} published numbers and sentences at {SCALE} scale: {said}.\n"
    )


def costs(smoke: Path) -> dict[str, Any]:
    """What the other scales take: smoke as it was measured in a folder, paper as the plan predicts it.

    Args:
        smoke: where the smoke scale ran; of a study that did not run there nothing is known.
    """
    _, plan = current_plan("smoke", studies())
    measured = {}
    for study in studies():
        claims = smoke / "results" / "studies" / study / "claims.json"
        if claims.is_file():
            runs, cost = (read_json(claims)[key] for key in ("runs", "cost"))
            took = of_study(plan, smoke / "logs" / "benchmarks", study)
            measured[study] = {"runs": runs["planned"], "took": {**took, "disk_bytes": cost["disk_bytes"]}}
    gpu = gpu_facts(None, 80)
    predicted = {row["study"]: row for row in study_rows(current_plan("paper", studies())[1], gpu)}
    return {"smoke": measured, "paper": predicted, "gpu": gpu.name}


def _cost(frozen: Path) -> str:
    lines = ["| study | scale | runs | jobs | time | CPU time | most memory of a job | disk |",
             "|---|---|--:|--:|--:|--:|--:|--:|"]  # fmt: skip
    other = read_json(frozen / COSTS) if (frozen / COSTS).is_file() else {"smoke": {}, "paper": {}, "gpu": "GPU"}
    for study in studies():
        file = frozen / study / "facts.json"
        lines.append(_measured(study, "smoke", other["smoke"].get(study, {})))
        lines.append(_measured(study, SCALE, read_json(file) if file.is_file() else {}))
        lines.append(_predicted(study, other["paper"].get(study)))
    note = (
        "Smoke and laptop scale are measured: the sum over the jobs of the frozen run, each with one thread, two at a "
        "time where there are two cores; a job that several studies share counts for each. A dash: not measured. Paper "
        f"scale was never run: its row is predicted for one {other['gpu']}, in GPU hours and GPU memory; how, and what "
        "each run takes: [clusters](docs/cluster.md)."
    )
    return "\n".join([*lines, "", note, ""])


def _measured(study: str, scale: str, facts: Mapping[str, Any]) -> str:
    took = facts.get("took") or {}
    jobs = f"{took['jobs']} of {took['planned']}" if took else "–"
    cells = [number(facts.get("runs")), jobs, duration(took.get("wall_s")), duration(took.get("cpu_s"))]
    cells += [size(took.get("peak_bytes")), size(took.get("disk_bytes"))]
    return f"| `{study}` | {scale} | {' | '.join(cells)} |"


def _predicted(study: str, row: Mapping[str, Any] | None) -> str:
    cells = ["–"] * 6
    if row is not None:
        hours = f"{number(row['gpu_hours'])} GPU hours"
        cells = [number(row["runs"]), number(row["packs"]), hours, "–"]
        cells += [size(row["peak_bytes"]), size(row["disk_bytes"])]
    return f"| `{study}` | paper, predicted | {' | '.join(cells)} |"


def _block(folder: Path, figures: list[str]) -> str:
    if not folder.is_dir():
        return "No laptop-scale results are frozen yet: `make freeze` puts figures and verdicts here.\n"
    facts, claims = read_json(folder / "facts.json"), read_json(folder / "claims.json")
    where = f"docs/frozen/{folder.name}"
    made_from = "; ".join(", ".join(facts[key]) for key in ("model", "data", "device"))
    count = Counter(claims["counts"])
    counts = ", ".join(told(verdict, count[verdict], claims["reproduced"]) for verdict in VERDICTS if count[verdict])
    images = "\n".join(
        f'<img src="{where}/{name}.png" width="49%" alt="{html.escape(_title(folder, name))}">' for name in figures
    )
    rows = [entry for entry in claims["entries"] if entry["claim"]]
    table = "\n".join(f"| {_cell(_row(entry))} |" for entry in rows)
    return (
        f"{images}\n\n"
        f"Laptop scale, {facts['date']}, commit {', '.join(facts['commit'])}: {facts['runs']} runs "
        f"({made_from}). [All tables and figures]({where}).\n\n"
        f"Of {len(claims['entries'])} published numbers and sentences: {counts}.\n\n"
        f"<details><summary>The {len(rows)} sentences, one by one</summary>\n\n"
        f"| id | the document says | verdict | because |\n|---|---|---|---|\n{table}\n\n</details>\n"
    )


def _row(entry: dict[str, Any]) -> list[str]:
    shortened = textwrap.shorten(entry["cause"], EVIDENCE_CHARACTERS, placeholder=" …")
    return [entry["id"], str(entry["published"]), f"**{entry['verdict']}**", shortened]


def _cell(values: list[str]) -> str:
    return " | ".join(value.replace("|", "\\|") for value in values)


def _title(folder: Path, figure: str) -> str:
    title: str = load_study(folder.name).figures[figure]["title"]
    return title


def main() -> int:
    """Freezes every study, draws what holds, and writes the README."""
    try:
        _, plan = current_plan(SCALE, studies())
        for study in studies():
            freeze(study, RESULTS, FROZEN, of_study(plan, BENCHMARKS, study))
            print(f"{study}: frozen in docs/frozen/{study}")
    except LowrankError as error:
        print(f"freeze: {error}", file=sys.stderr)
        return error.exit_code
    write_json(FROZEN / COSTS, costs(SMOKE))
    style.save(overview(counts(FROZEN)), FROZEN / OVERVIEW)
    write_text(README, show(README.read_text(encoding="utf-8")))
    print("README.md shows it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
