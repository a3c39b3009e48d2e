"""What SLURM said of jobs of this folder that ended: its executor writes it down, the report and the next job read it.

Nothing heavy is imported: the Snakefile reads it in every job.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

RECORD = Path("logs/slurm/used.txt")
"""A `Line` for each job that ended and for each of its steps."""

COLUMNS = ("JobIDRaw", "State", "ElapsedRaw", "TimelimitRaw", "ReqMem", "MaxRSS", "AllocTRES")
"""What the accounting is asked of a job; the step with the highest MaxRSS says what it really held."""

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

EARLY_S = 60
"""SLURM's warning of a time limit comes up to so much earlier than was asked for."""


class Line(NamedTuple):
    """A job or a step of one, such as `12.batch`; what the accounting does not say is empty."""

    name: str
    job: str
    state: str
    elapsed_s: str
    limit_minutes: str
    asked: str
    held: str
    allocated: str


class Short(NamedTuple):
    """The jobs, one after another for the same work, that ended because they had asked for too little."""

    memory: tuple[str, ...] = ()
    time: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = {"memory": self.memory, "time": self.time}
        return ", ".join(f"{' '.join(jobs)} ran out of {what}" for what, jobs in parts.items() if jobs)


ENOUGH = Short()
"""Nothing that is known of was too little."""


def job_name(rule: str, wildcards: Iterable[str]) -> str:
    """What a job is called in the record, over all its attempts: `train_x`, or `prepare y` where a rule has many."""
    return " ".join([rule, *wildcards])


def record(name: str, printed: str, file: Path = RECORD) -> None:
    """Appends what the accounting printed of a job."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.writelines(f"{name}|{line.strip()}\n" for line in printed.splitlines() if line.strip())


def read_record(file: Path = RECORD) -> list[Line]:
    """The record; empty where there is none."""
    if not file.is_file():
        return []
    rows = [line.split("|") for line in file.read_text(encoding="utf-8").splitlines()]
    return [Line(*row) for row in rows if len(row) == len(Line._fields)]


def size_bytes(told: str) -> int | None:
    """`1000M`, `2.5G` or `4000Mn` in bytes; None where nothing is told."""
    number = told.rstrip("nc")
    if not number or number[-1] not in UNITS:
        return None
    return round(float(number[:-1]) * UNITS[number[-1]])


def ran_short(name: str, warn_seconds: int, file: Path = RECORD) -> Short:
    """Which jobs of a name had asked for too little. Whatever else ended a job (pre-emption, a node, scancel) is none.

    Args:
        name: of `job_name`.
        warn_seconds: how long before its time limit a job is told to save and stop; SLURM says FAILED of one that did.
        file: the record.
    """
    size = file.stat().st_size if file.is_file() else 0  # it only grows
    return _all_short(file.absolute(), size, warn_seconds).get(name, ENOUGH)


@functools.lru_cache(maxsize=1)
def _all_short(file: Path, size: int, warn_seconds: int) -> Mapping[str, Short]:
    ended: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in read_record(file) if size else []:
        ended[line.name, line.job.partition(".")[0]].append(line)
    found: dict[str, Short] = defaultdict(Short)
    for (name, job), lines in ended.items():
        before = found[name]
        if _lacked_memory(lines):
            found[name] = before._replace(memory=(*before.memory, job))
        elif _lacked_time(lines[0], warn_seconds):
            found[name] = before._replace(time=(*before.time, job))
    return found


def _lacked_memory(lines: list[Line]) -> bool:
    """By SLURM's word for the job or a step; a SLURM that kills without a word has seen a step hold too much."""
    if any(line.state == "OUT_OF_MEMORY" for line in lines):
        return lines[0].state != "COMPLETED"
    asked = size_bytes(lines[0].asked)
    return (
        lines[0].state == "FAILED" and asked is not None and any((size_bytes(line.held) or 0) > asked for line in lines)
    )


def _lacked_time(job: Line, warn_seconds: int) -> bool:
    """By SLURM's word, or because it failed once it had been told to stop."""
    if job.state == "TIMEOUT":
        return True
    if job.state != "FAILED" or not (job.elapsed_s.isdigit() and job.limit_minutes.isdigit()):
        return False
    return int(job.elapsed_s) >= 60 * int(job.limit_minutes) - warn_seconds - EARLY_S
