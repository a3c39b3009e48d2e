"""Where the time went: what Snakemake's benchmark files say of each rule and study."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

MIB = 2**20


def timings(plan: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """One row per rule and study, the longest first, then the sum.

    Args:
        plan: says whose a pack is; what several studies share stands under all their names.
        folder: `<rule>/<what>.tsv`, as the rules name them. A job that was not run since the folder was
            emptied has no file, and is in no sum.

    Returns:
        `rule`, `studies`, `jobs`, `wall_s`, `cpu_s` (None where no job was long enough to be sampled), `peak_bytes`.
    """
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for rule, what, job in _jobs(folder):
        groups.setdefault((rule, _owners(plan, what)), []).append(job)
    rows = [{"rule": rule, "studies": studies, **_sums(jobs)} for (rule, studies), jobs in groups.items()]
    rows.sort(key=lambda row: -row["wall_s"])
    everything = [job for jobs in groups.values() for job in jobs]
    return [*rows, {"rule": "all", "studies": "", **_sums(everything)}] if rows else []


def of_study(plan: Mapping[str, Any], folder: Path, study: str) -> dict[str, Any]:
    """What one study's jobs took; a job that several studies share counts in full for each.

    Returns:
        The sums of `timings`, and `planned`: how many jobs the study asks for, fetching left out.
    """
    packs = [pack for pack in plan["packs"].values() if study in pack["owners"]]
    scored = [name for pack in packs if pack["keep_weights"] for name in pack["evaluations"]]
    data = {name for pack in packs for name in (pack["data"], *pack["evaluations"].values())}
    jobs = [job for _, what, job in _jobs(folder) if study in _owners(plan, what).split(", ")]
    report = 2 + bool(plan["studies"][study].get("counted"))  # tables and page, and what is counted on shapes
    return {**_sums(jobs), "planned": len(packs) + len(scored) + len(data) + report}


def _jobs(folder: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    """The rule of each job, what it was run on, and what Snakemake measured."""
    for file in sorted(folder.glob("*/*.tsv")):
        with file.open(encoding="utf-8", newline="") as lines:
            for job in csv.DictReader(lines, delimiter="\t"):
                yield file.parent.name, file.stem, job


def _owners(plan: Mapping[str, Any], what: str) -> str:
    """The studies that a file's pack, or a pack's evaluation, belongs to; those that use prepared data."""
    packs = plan["packs"].values()
    named = [pack for pack in packs if what == pack["name"] or what.startswith(f"{pack['name']}-")]
    using = named or [pack for pack in packs if what == pack["data"] or what in pack["evaluations"].values()]
    owners = {owner for pack in using for owner in pack["owners"]} | ({what} & plan["studies"].keys())
    return ", ".join(sorted(owners)) or "none of this plan"


def _sums(jobs: Iterable[Mapping[str, str]]) -> dict[str, Any]:
    held = list(jobs)
    cpu, peak = _numbers(held, "cpu_time"), _numbers(held, "max_rss")
    return {
        "jobs": len(held),
        "wall_s": sum(_numbers(held, "s")),
        "cpu_s": sum(cpu) if cpu else None,
        "peak_bytes": int(max(peak) * MIB) if peak else None,
    }


def _numbers(jobs: Iterable[Mapping[str, str]], column: str) -> list[float]:
    """Snakemake writes NA where a job ended before it was looked at."""
    return [float(job[column]) for job in jobs if job.get(column) not in (None, "", "NA", "-")]
