"""What a cluster's jobs used beside what was planned, from SLURM's accounting; nothing where no such record is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowrank.accounting import read_record, size_bytes
from lowrank.plan import rule_of


def planned_and_used(plan: Mapping[str, Any], file: Path) -> list[dict[str, Any]]:
    """One row for each study with training jobs in the record.

    Args:
        plan: says which rule trains which pack, and how many minutes that was expected to take.
        file: the record, as `lowrank.accounting` describes it.

    Returns:
        `study`, `jobs` (packs), `attempts`, `planned_hours` of those packs, `used_hours` of all attempts,
        `asked_bytes` and `used_bytes`, the highest of a job; None where the accounting does not say.
    """
    lines, rows = read_record(file), []
    for study in plan["studies"]:
        packs = {rule_of("train", pack["name"]): pack for pack in plan["packs"].values() if study in pack["owners"]}
        own = [line for line in lines if line.name in packs]
        jobs = [line for line in own if "." not in line.job and line.elapsed_s]  # those that the accounting knows
        asked = [size for line in own if (size := size_bytes(line.asked)) is not None]
        held = [size for line in own if (size := size_bytes(line.held)) is not None]
        if jobs:
            rows.append(
                {
                    "study": study,
                    "jobs": len({line.name for line in jobs}),
                    "attempts": len(jobs),
                    "planned_hours": sum(packs[rule]["expected_minutes"] for rule in {line.name for line in jobs}) / 60,
                    "used_hours": sum(int(line.elapsed_s) for line in jobs) / 3600,
                    "asked_bytes": max(asked, default=None),
                    "used_bytes": max(held, default=None),
                }
            )
    return rows
