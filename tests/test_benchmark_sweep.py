"""The sweep's benchmark: its page and the README show the committed result, and each way of it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.sweep_goals import goals
from benchmarks.sweep_records import Choice, Spread, Sweep
from benchmarks.sweep_tables import FIGURE, PAGE, README, load, page, show
from lowrank.files import REPOSITORY, read_json


def test_the_page_and_the_readme_are_those_of_the_committed_result() -> None:
    result = load()
    assert PAGE.read_text() == page(result)
    text = README.read_text()
    assert show(text, result) == text, "run `python -m benchmarks.sweep_tables`"
    assert FIGURE.read_text().startswith("<?xml")


def test_a_missed_goal_is_shown_as_missed() -> None:
    result = load()
    slow = result.sweeps[0].ways[-1].model_copy(update={"cpu_s": 1e9})
    sweep = result.sweeps[0].model_copy(update={"ways": (*result.sweeps[0].ways[:-1], slow)})
    changed = result.model_copy(update={"sweeps": (sweep, *result.sweeps[1:])})
    assert sum(not met for *_, met in goals(changed)) == sum(not met for *_, met in goals(result)) + 3
    assert "**missed**" in page(changed)


def test_one_choice_that_is_slower_misses_the_goal() -> None:
    result = load()
    slow = Choice(
        layers=1, width=1, tokens=1, members=4, chosen=4, over_alone=Spread(median=0.97, low=0.9, high=1.0, rounds=7)
    )
    assert "**missed**" not in page(result.model_copy(update={"sweeps": (), "growth": (), "threads": ()}))
    changed = result.model_copy(update={"sweeps": (), "growth": (), "threads": (), "choices": (*result.choices, slow)})
    assert "0.97 | 1 | **missed**" in page(changed)


@pytest.mark.slow
def test_every_way_runs(tmp_path: Path) -> None:
    output = tmp_path / "quick.json"
    command = [sys.executable, "-m", "benchmarks.sweep", "--quick", "--output", str(output)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = Sweep.model_validate(read_json(output))
    (sweep,) = found.sweeps
    assert [way.runs for way in sweep.ways] == [1, 1, 12, 12]
    assert found.taken.keys() == {"sweeps", "growth", "choices", "threads"}
    assert all(getattr(found, part) for part in found.taken)
