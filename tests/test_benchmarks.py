"""The benchmark runs, on tiny shapes and without a claim about time; its table shows what the committed result says."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.methods import SECTIONS, replaced
from benchmarks.paired import Times, alternate
from benchmarks.records import Goal, Report, Spread
from benchmarks.tables import README, RESULT, load, show, tables
from lowrank.errors import ConfigError
from lowrank.files import REPOSITORY, read_json


def test_every_section_runs(tmp_path: Path) -> None:
    output = tmp_path / "quick.json"
    command = [sys.executable, "-m", "benchmarks.methods", "--quick", "--output", str(output)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = Report.model_validate(read_json(output))
    assert len(report.sections) == len(SECTIONS)
    assert report.quick
    assert "these figures mean nothing" in done.stdout
    goals = {goal.what: goal for section in report.sections for goal in section.goals}
    exact = {what: goal for what, goal in goals.items() if goal.measured.rounds == 1}
    # What is counted and has a closed form holds at every size.
    for part in ("VeLoRA on v and down, saved", "NF4, largest difference", "GaLore's state", "LTE: bytes", "energy"):
        found = [goal for what, goal in exact.items() if part in what]
        assert found
        assert all(goal.met for goal in found), part
    assert {goal.id for goal in goals.values()} == {"G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G12"}


def test_the_tables_are_those_of_the_committed_result() -> None:
    report = load()
    assert not report.quick
    assert RESULT.with_suffix(".md").read_text() == tables(report)
    text = README.read_text()
    assert show(text, report) == text, "run `python -m benchmarks.tables`"
    assert show(text.replace("<!-- benchmarks -->", ""), report) != text


def test_sections_that_were_measured_again_say_so() -> None:
    old = load()
    section = old.sections[0].model_copy(update={"setting": "another", "again": ""})
    new = old.model_copy(update={"date": "2030-01-01", "commit": "abc", "sections": (section,)})
    both = replaced(old, new)
    assert both.sections[1:] == old.sections[1:]
    assert (both.sections[0].setting, both.sections[0].again) == ("another", "2030-01-01 at abc")
    assert "another. Measured again on 2030-01-01 at abc." in tables(both)
    with pytest.raises(ConfigError, match=r"cpu 'another', the result has .*; allowed: a run of all sections"):
        replaced(old, new.model_copy(update={"cpu": "another"}))


def test_a_missed_goal_is_shown_as_missed_with_its_reason() -> None:
    report = load()
    goal = report.sections[0].goals[0]
    missed = goal.model_copy(update={"at_most": 0.0, "note": "because of this"})
    section = report.sections[0].model_copy(update={"goals": (missed,)})
    page = tables(report.model_copy(update={"sections": (section,)}))
    assert "**missed**" in page
    assert f"- {goal.what}: because of this" in page


@pytest.mark.parametrize(("value", "met"), [(0.9, True), (0.9004, True), (0.901, False)])
def test_a_goal_is_judged_as_it_is_printed(value: float, met: bool) -> None:
    assert Goal(id="G0", what="x", measured=Spread.exact(value), at_most=0.9).met is met


def test_ratios_are_paired() -> None:
    """A machine that is four times slower in one round leaves the ratio where it is."""
    times = Times({"a": [1.0, 4.0, 1.0, 1.5], "b": [2.0, 8.0, 2.0, 3.0]})
    assert times.ratio("a", "b") == Spread(median=0.5, low=0.5, high=0.5, rounds=4)
    assert times.step_ms("a").median == 1250.0


@pytest.mark.parametrize(("warm", "first"), [(True, 1), (False, 0)])
def test_arms_take_turns(warm: bool, first: int) -> None:
    seen: list[str] = []
    arms = {name: lambda name=name: seen.append(name) for name in "ab"}
    prepare = {name: lambda name=name: seen.append(f"for {name}") for name in "ab"}
    times = alternate(arms, 3, warm=warm, prepare=prepare)
    forth, back = ["for a", "a", "for b", "b"], ["for b", "b", "for a", "a"]
    assert seen == list(itertools.chain(*[forth, back, forth, back][: 4 - first]))
    assert [len(seconds) for seconds in times.seconds.values()] == [3, 3]
