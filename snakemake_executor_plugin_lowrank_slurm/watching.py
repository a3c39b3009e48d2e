"""What SLURM says of jobs, and what follows from it."""

from __future__ import annotations

import os
from datetime import datetime, timedelta

from lowrank.accounting import COLUMNS

CONTROLLER = ["squeue", "--noheader", "--states=all", "--format=%A|%T", "--name"]
"""Completed by the name that all jobs of one call of Snakemake bear."""

EARLIER = ["squeue", "--noheader", "--me", "--format=%A|%j|%Z"]

GRACE_S = 120.0
"""How long a job may stay in a state from which it comes back: one that is requeued is pending at once."""

FORGOTTEN_S = 900.0
"""How long a job may be known to nobody: a new one reaches the accounting late."""

LOST = "LOST"
"""Our word for a job that the controller does not list, and of which the accounting knows no end: a controller that is
killed within seconds of a submission has not saved it yet."""

RETURNING = frozenset({"PREEMPTED", "NODE_FAIL", "REQUEUED", LOST})

FAILED = {
    "BOOT_FAIL": "its node did not start",
    "CANCELLED": "it was cancelled",
    "DEADLINE": "it passed its deadline",
    "FAILED": "its command failed",
    "LAUNCH_FAILED": "it could not be launched",
    LOST: "the controller does not know it, and the accounting knows of no end; it is submitted again",
    "NODE_FAIL": "its node failed and it was not requeued",
    "OUT_OF_MEMORY": "it used more memory than it had asked for",
    "PREEMPTED": "it was pre-empted and not requeued",
    "REQUEUED": "it was requeued and did not come back",
    "REVOKED": "it was revoked",
    "TIMEOUT": "it reached its time limit",
}


def accounting(jobs: list[str]) -> list[str]:
    """The command that asks the accounting for the states of jobs."""
    since = f"{datetime.now() - timedelta(days=7):%Y-%m-%d}"
    wanted = ["--jobs", ",".join(jobs), "--starttime", since]
    return ["sacct", "-X", "--parsable2", "--noheader", "--format=JobIDRaw,State", *wanted]


def usage(job: str) -> list[str]:
    """The command that asks the accounting what a job used."""
    return ["sacct", "--parsable2", "--noheader", f"--format={','.join(COLUMNS)}", "--jobs", job]


def has_ended(printed: str) -> bool:
    """Whether the accounting knows the end of a job, whose lines are first its own and then its steps'."""
    state = printed.partition("|")[2].partition("|")[0].split()
    return bool(state) and _is_end(state[0].rstrip("+"))


def _is_end(state: str) -> bool:
    return state == "COMPLETED" or state in FAILED


def bare(job: str, state: str) -> str:
    """What is recorded where only the controller answered: a job's end, and nothing of what it used."""
    return "|".join([job, state, *[""] * (len(COLUMNS) - 2)])


def states(printed: str) -> dict[str, str]:
    """`12|CANCELLED by 0` -> {"12": "CANCELLED"}; the last line of a job that stands twice is the newest."""
    found = {}
    for line in printed.splitlines():
        job, _, state = line.strip().partition("|")
        if state:
            found[job] = state.split()[0].rstrip("+")
    return found


def told(printed: str, jobs: list[str], controller_answers: bool) -> dict[str, str]:
    """What the accounting says of jobs that the controller does not list; it would list one that waits or runs."""
    known = states(printed)
    found = {job: known.get(job, "") for job in jobs}
    return {job: LOST if controller_answers and not _is_end(state) else state for job, state in found.items()}


def judge(state: str, seconds: float) -> str | None:
    """What becomes of a job: None where it is still to be watched, "" where it is done, else why it failed.

    Args:
        state: SLURM's word; empty where nobody knows the job.
        seconds: how long it has been in that state.
    """
    if state == "COMPLETED":
        return ""
    if state == "":
        return f"SLURM has not known it for {seconds:.0f} s" if seconds > FORGOTTEN_S else None
    if state in RETURNING and seconds <= GRACE_S:
        return None
    return f"{state}: {FAILED[state]}" if state in FAILED else None


def earlier_jobs(printed: str, prefix: str, folder: str) -> list[str]:
    """The jobs that a Snakemake of ours submitted from a folder.

    Args:
        printed: lines of job, name and working folder.
        prefix: how the names of our jobs begin.
        folder: where this Snakemake runs.
    """
    rows = [line.split("|", 2) for line in printed.splitlines() if line.count("|") >= 2]
    here = os.path.realpath(folder)
    return [job for job, name, where in rows if name.startswith(prefix) and os.path.realpath(where) == here]
