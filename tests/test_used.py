"""Planned against used: what SLURM's accounting says of jobs, written by the executor and read by the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lowrank.accounting import COLUMNS, RECORD, Line, Short, job_name, ran_short, record
from lowrank.plan import rule_of
from lowrank.report.used import planned_and_used
from snakemake_executor_plugin_lowrank_slurm import watching

PACKS = {
    "lora-1a-0": {"name": "lora-1a-0", "owners": ["one"], "expected_minutes": 30.0},
    "lora.velora-2b-0": {"name": "lora.velora-2b-0", "owners": ["one", "two"], "expected_minutes": 90.0},
    "full-3c-0": {"name": "full-3c-0", "owners": ["two"], "expected_minutes": 600.0},
}
PLAN: dict[str, Any] = {"studies": {"one": {}, "two": {}, "three": {}}, "packs": PACKS}

# As `sacct --parsable2 --noheader` prints it: the job, then its steps.
TIMED_OUT = (
    "7|TIMEOUT|3600|60|4000M||cpu=8,gres/gpu=1\n7.batch|CANCELLED|3605|||1500000K|cpu=8\n7.0|COMPLETED|3590|||2.5G|\n"
)
DONE = "8|COMPLETED|1800|120|8000M||cpu=8,gres/gpu=1\n8.batch|COMPLETED|1800|||1000M|cpu=8\n"
OTHER = "9|COMPLETED|600|60|1G||\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "logs" / "used.txt"
    record("train_lora_velora_2b_0", TIMED_OUT, found)
    record("train_lora_velora_2b_0", DONE, found)
    record("train_lora_1a_0", OTHER, found)
    record("prepare", "10|COMPLETED|5|60|1G||\n", found)
    record("train_gone_0", DONE, found)
    return found


def test_each_study_has_its_jobs_attempts_and_peaks(file: Path) -> None:
    one, two = planned_and_used(PLAN, file)
    assert one == {
        "study": "one",
        "jobs": 2,
        "attempts": 3,
        "planned_hours": 2.0,
        "used_hours": (3600 + 1800 + 600) / 3600,
        "asked_bytes": 8000 * 2**20,
        "used_bytes": round(2.5 * 2**30),
    }
    assert (two["study"], two["jobs"], two["planned_hours"], two["used_hours"]) == ("two", 1, 1.5, 1.5)


def test_without_a_record_there_is_no_table(tmp_path: Path) -> None:
    assert planned_and_used(PLAN, tmp_path / "none") == []
    empty = tmp_path / "used.txt"
    record("train_lora_1a_0", "", empty)
    assert planned_and_used(PLAN, empty) == []


def test_what_is_not_told_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "used.txt"
    record("train_lora_1a_0", "9|COMPLETED|60|60|||\n", file)
    (row,) = planned_and_used(PLAN, file)
    assert row["asked_bytes"] is row["used_bytes"] is None
    record("train_lora_1a_0", watching.bare("10", "FAILED"), file)
    assert planned_and_used(PLAN, file) == [row], "of the tenth the accounting said nothing"


def test_the_name_of_a_rule() -> None:
    assert rule_of("train", "lora.velora-2b-0") == "train_lora_velora_2b_0"
    assert rule_of("evaluate", "full-3c-1", "test-1f") == "evaluate_full_3c_1_test_1f"


WARNED = "7|FAILED|430|10|1000M||\n7.batch|FAILED|430|||100M|\n7.0|FAILED|425|||300M|\n"


@pytest.mark.parametrize(
    ("printed", "short"),
    [
        ("7|OUT_OF_MEMORY|60|10|1000M||\n7.0|OUT_OF_MEMORY|59|||990M|\n", "7 ran out of memory"),
        ("7|FAILED|60|10|1000M||\n7.batch|FAILED|60|||9M|\n7.0|OUT_OF_MEMORY|59|||990M|\n", "7 ran out of memory"),
        ("7|FAILED|60|10|1000M||\n7.0|CANCELLED by 0|59|||1482932K|\n", "7 ran out of memory"),
        ("7|COMPLETED|60|10|1000M||\n7.0|OUT_OF_MEMORY|59|||990M|\n", ""),
        ("7|TIMEOUT|610|10|1000M||\n7.0|CANCELLED|609|||300M|\n", "7 ran out of time"),
        (WARNED, "7 ran out of time"),
        (WARNED.replace("430", "300"), ""),
        (WARNED.replace("|10|", "|UNLIMITED|"), ""),
        (WARNED.replace("7|FAILED", "7|CANCELLED by 0"), ""),
        *((f"7|{state}|600|10|1000M||\n7.0|CANCELLED|600|||2000M|\n", "") for state in ("PREEMPTED", "NODE_FAIL")),
        (watching.bare("7", watching.LOST), ""),
        (watching.bare("7", "FAILED"), ""),
        (watching.bare("7", "TIMEOUT"), "7 ran out of time"),
        (watching.bare("7", "OUT_OF_MEMORY"), "7 ran out of memory"),
    ],
)
def test_what_a_job_had_asked_too_little_of(printed: str, short: str, tmp_path: Path) -> None:
    record("train_x", printed, tmp_path / "used.txt")
    assert str(ran_short("train_x", 120, tmp_path / "used.txt")) == short


def test_jobs_for_the_same_work_are_counted_together(tmp_path: Path) -> None:
    """Those of an earlier call of Snakemake too, since the record stays."""
    file = tmp_path / "used.txt"
    assert ran_short("train_x", 120, file) == Short()
    for job, state in enumerate(("OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT", "OUT_OF_MEMORY", "CANCELLED", "NODE_FAIL")):
        record("train_x", f"{job}|{state}|9|10|1000M||", file)
        record(job_name("prepare", ["some"]), f"1{job}|COMPLETED|9|10|1000M||", file)
    record(job_name("prepare", ["other"]), "20|TIMEOUT|9|10|1000M||", file)
    assert ran_short("train_x", 120, file) == Short(memory=("0", "3"), time=("2",))
    assert str(ran_short("train_x", 120, file)) == "0 3 ran out of memory, 2 ran out of time"
    assert ran_short("prepare some", 120, file) == Short()
    assert ran_short("prepare other", 120, file) == Short(time=("20",))


@pytest.mark.parametrize(
    ("printed", "ended"),
    [
        (DONE, True),
        (TIMED_OUT, True),
        ("8|CANCELLED by 0|1|60|1G||\n", True),
        ("8|RUNNING|1|60|1G||\n8.batch|RUNNING|1||||\n", False),
        ("8|COMPLETING|1|60|1G||\n", False),
        ("", False),
    ],
)
def test_the_accounting_is_asked_until_it_knows_the_end(printed: str, ended: bool) -> None:
    assert watching.has_ended(printed) == ended


def test_what_is_asked_is_what_is_read() -> None:
    command = watching.usage("12")
    assert command[-1] == "12"
    assert "--format=JobIDRaw,State,ElapsedRaw,TimelimitRaw,ReqMem,MaxRSS,AllocTRES" in command
    assert len(Line._fields) == 1 + len(COLUMNS)
    assert Path("logs/slurm/used.txt") == RECORD, "a folder's earlier jobs are found again"
