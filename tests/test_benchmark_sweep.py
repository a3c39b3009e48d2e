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
    asked = [aim for aim in goals(changed) if aim.what.startswith(f"12-point sweep, {sweep.name}")]
    assert {aim.verdict for aim in asked if aim.measured is not None} == {"**missed**"}
    assert "**missed**" in page(changed)


def test_a_goal_that_was_not_measured_is_shown_as_such() -> None:
    nothing = load().model_copy(update={"sweeps": (), "growth": (), "choices": (), "threads": ()})
    assert {aim.verdict for aim in goals(nothing)} == {"**not measured**"}
    assert page(nothing).count("| **not measured** |") == len(goals(load()))


def test_one_choice_that_is_slower_misses_the_goal() -> None:
    result = load()
    slow = Choice(layers=1, width=1, tokens=256, members=4, over_alone=Spread(median=0.97, low=0.9, high=1.0, rounds=7))
    aim = goals(result.model_copy(update={"choices": (*result.choices, slow)}))[-1]
    assert (aim.measured, aim.verdict) == (0.97, "**missed**")


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
