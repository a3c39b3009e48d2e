"""The sweep's benchmark: its page and the README show the committed result, and each way of it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.sweep_tables import FIGURE, PAGE, README, Sweep, goals, load, page, show
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
    assert sum(not met for *_, met in goals(changed)) == sum(not met for *_, met in goals(result)) + 2
    assert "**missed**" in page(changed)


@pytest.mark.slow
def test_every_way_runs(tmp_path: Path) -> None:
    output = tmp_path / "quick.json"
    command = [sys.executable, "-m", "benchmarks.sweep", "--quick", "--output", str(output)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (sweep,) = Sweep.model_validate(read_json(output)).sweeps
    assert [way.runs for way in sweep.ways] == [1, 12, 12]
