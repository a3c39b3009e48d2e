"""The front page over all studies: what holds, what does not, what it took; and the same for machines."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lowrank.files import REPOSITORY, read_json, write_json, write_text
from lowrank.report.bibliography import bibtex
from lowrank.report.html import answers, badge, cell_text, escape, template
from lowrank.report.inline import inline_svg
from lowrank.report.run_page import run_link
from lowrank.report.text import duration, number, size
from lowrank.report.verdicts import VERDICTS, published, told
from lowrank.yaml_files import read_yaml

STUDY_FILES = REPOSITORY / "workflow" / "studies"

KINDS = ("directional", "analytic", "numeric")
"""In the order of the ledger: sentences first."""

FEW = 3
"""So many runs of an entry are linked from the ledger; its study's page has more."""

EMBEDDED_BYTES = 300_000
"""A file up to this size is inside the page; a link leads to a larger one."""


def render_index(
    studies: list[str],
    folder: Path,
    out: Path,
    scale: str,
    *,
    results: Path,
    study_files: Path = STUDY_FILES,
    spent: Sequence[Mapping[str, Any]] = (),
    took: Mapping[str, Mapping[str, Any]] | None = None,
    used: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Writes the front page, and `runs.csv`, `claims.json` and `references.bib` over all studies.

    Args:
        studies: names, in order.
        folder: holds one folder of results per study.
        out: the page.
        scale: smoke, laptop or paper.
        results: where the three files go.
        study_files: where the studies' YAML lies.
        spent: rows of `lowrank.report.timings.timings`.
        took: study -> `lowrank.report.timings.of_study`.
        used: rows of `lowrank.report.used.planned_and_used`.
    """
    raws = {study: read_yaml(study_files / f"{study}.yaml") for study in studies}
    records = {study: read_json(folder / study / "claims.json") for study in studies}
    frames = {study: pd.read_csv(folder / study / "runs.csv") for study in studies}
    # A column of one study alone is empty for the others: one row is one run of one study.
    named = [pd.concat([pd.Series(study, frame.index, name="study"), frame], axis=1) for study, frame in frames.items()]
    runs = pd.concat(named, ignore_index=True)
    write_text(results / "runs.csv", runs.to_csv(index=False, lineterminator="\n"))
    write_json(results / "claims.json", {"scale": scale, "studies": records})
    write_text(results / "references.bib", bibtex(chain_parts(raws.values())))
    entries = [{"study": study, **entry} for study, record in records.items() for entry in record["entries"]]
    entries.sort(key=lambda entry: (studies.index(entry["study"]), KINDS.index(entry["kind"])))
    counts = Counter(entry["verdict"] for entry in entries)
    split = Counter[str]()
    for record in records.values():
        split.update(record["reproduced"])
    page = template("index").render(
        told=[told(verdict, counts[verdict], split) for verdict in VERDICTS if counts[verdict]],
        scale=scale,
        cards=[_card(study, raws[study], records[study], folder / study, scale, took or {}) for study in studies],
        rows=[_row(entry) for entry in entries],
        studies={study: raws[study]["title"] for study in studies},
        verdicts=[verdict for verdict in VERDICTS if any(entry["verdict"] == verdict for entry in entries)],
        kinds=[kind for kind in KINDS if any(entry["kind"] == kind for entry in entries)],
        files=[_download(results / name, out.parent, what) for name, what in FILES.items()],
        spent=spent,
        used=used,
        references=(results / "references.bib").read_text(encoding="utf-8"),
    )
    write_text(out, page)


FILES = {
    "runs.csv": "every run of every study, one row each",
    "claims.json": "every published number with ours, verdict and evidence; the share of each verdict",
    "references.bib": "the methods’ papers as BibTeX",
}


def chain_parts(raws: Iterable[Mapping[str, Any]]) -> set[str]:
    """The parts of every chain that the studies name."""
    chains = [arm["chain"] for raw in raws for arm in raw.get("arms", {}).values()]
    entries = [entry for chain in chains for entry in (chain.split("+") if isinstance(chain, str) else chain)]
    return {entry if isinstance(entry, str) else str(entry["part"]) for entry in entries}


def _card(
    study: str,
    raw: Mapping[str, Any],
    record: Mapping[str, Any],
    folder: Path,
    scale: str,
    took: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What the front page says of a study."""
    figures = raw.get("figures") or {}
    name = raw.get("key_figure") or next(iter(figures), None)
    drawing, caption = "", ""
    if name is not None:
        text = (folder / f"{name}.svg").read_text(encoding="utf-8")
        drawing = inline_svg(text, f"{study}-{name}", figures[name]["title"])
        caption = figures[name]["title"]
    runs, cost = record["runs"], record["cost"]
    absent = {status: runs[status] for status in ("missing", "failed", "diverged") if runs.get(status)}
    return {
        "study": study,
        "raw": raw,
        "drawing": drawing,
        "caption": caption,
        "answers": answers(raw.get("key_claims") or (), record["entries"], f"{study}.html"),
        "counts": [
            (verdict, badge(verdict), record["counts"][verdict], 100 * record["shares"][verdict])
            for verdict in VERDICTS
            if record["counts"][verdict]
        ],
        "total": len(record["entries"]),
        "by_verdict": record["counts"],
        "reproduced": record["reproduced"],
        "cause": runs["cause"],
        "dropped": raw.get("scales", {}).get(scale, {}).get("dropped") or "Nothing is left out.",
        "facts": [
            ("runs", f"{number(runs['planned'])}" + "".join(f", {count} {status}" for status, count in absent.items())),
            ("training", _training(cost, runs["planned"])),
            ("all jobs", _took(took.get(study))),
            ("machine", ", ".join(cost["devices"]) or "–"),
            ("on disk", size(cost["disk_bytes"])),
        ],
    }


def _training(cost: Mapping[str, Any], runs: int) -> str:
    """Seconds in training steps, and of how many runs, since runs that train together have none of their own."""
    timed = "" if cost["timed"] == runs else f" in the {cost['timed']} runs that have a time of their own"
    return f"{duration(cost['train_time_s'])}{timed}"


def _took(jobs: Mapping[str, Any] | None) -> str:
    """What the jobs took that were run here."""
    if jobs is None or not jobs["jobs"]:
        return "not measured here"
    parts = [duration(jobs["wall_s"])]
    parts += [f"{duration(jobs['cpu_s'])} of CPU time"] if jobs["cpu_s"] is not None else []
    parts += [f"at most {size(jobs['peak_bytes'])} each"] if jobs["peak_bytes"] is not None else []
    some = "" if jobs["jobs"] == jobs["planned"] else f" ({jobs['jobs']} of {jobs['planned']} jobs)"
    return ", ".join(parts) + some


def _row(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the ledger."""
    column = entry["cell"]["column"] if entry["cell"] else ""
    ours = cell_text(column, entry["ours"]) if entry["cell"] else "see cause"
    if entry["ours_low"] is not None and entry["ours_high"] is not None:
        ours += f" [{cell_text(column, entry['ours_low'])}, {cell_text(column, entry['ours_high'])}]"
    anchor = "" if entry["table"] is None else f"#t-{entry['table']}"
    anchor += f"-{entry['rows'][0]}" if entry["rows"] else ""
    runs = [run_link(entry["study"], run, str(index)) for index, run in enumerate(entry["runs"][:FEW], start=1)]
    more = f" of {len(entry['runs'])}" if len(entry["runs"]) > FEW else ""
    where = f"#{entry['id']}" if entry["claim"] else anchor
    return {
        "study": entry["study"],
        "id": entry["id"],
        "kind": entry["kind"],
        "published": published(entry["published"], entry["reading"]),
        "ours": ours,
        "verdict": entry["verdict"],
        "badge": badge(entry["verdict"]),
        "cause": entry["cause"],
        "href": f"{entry['study']}.html{where}",
        "runs": " ".join(runs) + more,
    }


def _download(path: Path, page_folder: Path, what: str) -> dict[str, str]:
    """A file as a link: inside the page where it is small, so that a copied page keeps it."""
    data = path.read_bytes()
    href = f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"
    if len(data) > EMBEDDED_BYTES:
        href = escape(Path(*[".."] * len(page_folder.parts), path) if not path.is_absolute() else path.as_uri())
    return {"name": path.name, "what": what, "href": href, "size": size(len(data))}
