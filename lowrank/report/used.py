"""What a cluster's jobs used beside what was planned, from SLURM's accounting; nothing where no such record is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class _Line(NamedTuple):
    """A job or a step of one, as the cluster's executor writes it down."""

    rule: str
    job: str
    state: str
    elapsed_s: str
    limit_minutes: str
    asked: str
    held: str
    allocated: str


def planned_and_used(plan: Mapping[str, Any], file: Path) -> list[dict[str, Any]]:
    """One row for each study with training jobs in the record.

    Args:
        plan: says which rule trains which pack, and how many minutes that was expected to take.
        file: the record; a line is a rule and what the accounting says of a job or of one of its steps.

    Returns:
        `study`, `jobs` (packs), `attempts`, `planned_hours` of those packs, `used_hours` of all attempts,
        `asked_bytes` and `used_bytes`, the highest of a job; None where the accounting does not say.
    """
    if not file.is_file():
        return []
    lines = [
        _Line(*fields) for line in file.read_text(encoding="utf-8").splitlines() if len(fields := line.split("|")) == 8
    ]
    rows = []
    for study in plan["studies"]:
        packs = {rule_of(pack): pack for pack in plan["packs"].values() if study in pack["owners"]}
        own = [line for line in lines if line.rule in packs]
        jobs = [line for line in own if "." not in line.job]
        asked = [size for line in own if (size := _bytes(line.asked)) is not None]
        held = [size for line in own if (size := _bytes(line.held)) is not None]
        if jobs:
            rows.append(
                {
                    "study": study,
                    "jobs": len({line.rule for line in jobs}),
                    "attempts": len(jobs),
                    "planned_hours": sum(packs[rule]["expected_minutes"] for rule in {line.rule for line in jobs}) / 60,
                    "used_hours": sum(int(line.elapsed_s or 0) for line in jobs) / 3600,
                    "asked_bytes": max(asked, default=None),
                    "used_bytes": max(held, default=None),
                }
            )
    return rows


def rule_of(pack: Mapping[str, Any]) -> str:
    """The name of the rule that trains a pack."""
    return f"train_{pack['name'].replace('.', '_').replace('-', '_')}"


def _bytes(told: str) -> int | None:
    """`1000M`, `2.5G` or `4000Mn` in bytes; None where nothing is told."""
    number = told.rstrip("nc")
    if not number or number[-1] not in UNITS:
        return None
    return round(float(number[:-1]) * UNITS[number[-1]])
