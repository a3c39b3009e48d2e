"""Observers: found by name, they change no number of a run, outlive an interruption, and see what a merge does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank import registry
from lowrank.errors import ConfigError
from lowrank.files import read_json
from lowrank.run_folder import OBSERVED, RUNS
from lowrank.signals import StopFlag
from lowrank.spec import RunSpec, run_id
from lowrank.strict import parse
from lowrank.train.loop import State
from lowrank.train.observer import Observer, Watch
from lowrank.train.pack import train_pack
from tests.test_train_resume import stopped_and_resumed
from tests.tolerances import BIT_EXACT
from tests.training_lab import history, pack_of, run_spec, weights

RANK, EVERY = 2, 2


def merging(rule: str = "both_factors", fraction: float = 0.4, **train: Any) -> RunSpec:
    merge = {"part": "alpha_merge", "merge_every": EVERY, "merge_fraction": fraction, "rule": rule}
    return run_spec([{"part": "lora", "rank": RANK, "alpha": 4}, merge], steps=4, **train)


def rows(run: str, folder: Path = RUNS) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_json(folder / run / OBSERVED / "ranks.json")
    return found


def trained(spec: RunSpec) -> str:
    pack = pack_of(spec)
    train_pack(pack, StopFlag())
    return pack.members[0].run


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_watched_run_is_the_run_itself() -> None:
    plain, watched = trained(merging()), trained(merging(observe={"ranks": {"every": EVERY}}))
    assert plain != watched
    assert history(plain) == history(watched)
    ours, theirs = weights(plain), weights(watched)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not (RUNS / plain / OBSERVED).exists()


def test_ranks_before_and_after_each_merge() -> None:
    found = rows(trained(merging(observe={"ranks": {"every": EVERY, "keep": 3}})))
    assert {(row["step"], row["moment"], row["part"]) for row in found} == {
        (step, moment, part) for step in (2, 4) for moment in ("before", "after") for part in ("total", "base")
    }
    for row in found:
        assert len(row["singular_values"]) == 3
        assert row["singular_values"] == sorted(row["singular_values"], reverse=True)
        merges = row["step"] // EVERY - (row["moment"] == "before")
        limit = RANK * merges if row["part"] == "base" else RANK * row["step"] // EVERY
        assert row["rank"] <= limit
        assert (row["norm"] > 0) == (row["effective_rank"] >= 1) == (limit > 0)
        assert row["effective_rank"] <= row["rank"] + 1e-9


@pytest.mark.parametrize(("rule", "factor"), [("both_factors", 1.0), ("one_factor", 1.0), ("as_published", 0.76)])
def test_the_update_shows_whether_a_merge_keeps_the_function(rule: str, factor: float) -> None:
    """The published rule leaves (1 - a + a^2) of what the adapter added: 0.76 at a = 0.4."""
    found = rows(trained(merging(rule, observe={"ranks": {"every": EVERY}})))
    norms = {(row["step"], row["moment"], row["layer"]): row["norm"] for row in found if row["part"] == "total"}
    first = [(norms[2, "after", layer], norms[2, "before", layer]) for step, _, layer in norms if step == EVERY]
    assert first
    for after, before in first:
        assert after == pytest.approx(factor * before, rel=1e-4)


def test_full_fine_tuning_has_no_base_beside_it() -> None:
    found = rows(trained(run_spec("full", steps=2, observe={"ranks": {"every": 2}})))
    assert {row["part"] for row in found} == {"total"}
    assert max(row["rank"] for row in found) > RANK


@pytest.mark.parametrize("step", [1, 2])
def test_a_resumed_run_has_the_rows_of_one_that_was_not_stopped(step: int) -> None:
    spec = merging(observe={"ranks": {"every": EVERY}})
    expected, run = rows(trained(spec)), stopped_and_resumed(spec, step)
    assert rows(run, Path("second")) == expected, BIT_EXACT


def test_what_is_seen_after_a_loss_that_is_not_finite_is_dropped() -> None:
    state = State(observed={"ranks": [{"step": 1}, {"step": 2}, {"step": 3}]})
    state.history = [{"step": 1}, {"step": 2}, {"step": 3}]
    state.record([0.1, float("nan"), 0.1])
    assert state.observed == {"ranks": [{"step": 1}]}


def test_looking_is_not_training_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 5.0, 7.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    watch, state = Watch({"ranks": {}}, torch.nn.Linear(1, 1)), State(seconds=10)
    with watch.around(1, state):
        pass
    assert state.seconds == 10 - 5 - 2


@pytest.mark.parametrize("name", ["ranks"])
def test_an_observer_says_what_it_is(name: str) -> None:
    found = registry.observer(name)
    assert issubclass(found, Observer)
    assert found.__doc__
    assert "Source:" in found.__doc__


def test_options_have_one_form_and_faults_are_explained() -> None:
    plain, told = (run_spec(steps=1, observe={"ranks": options}) for options in ({}, {"every": 100}))
    assert run_id(plain, {}) == run_id(told, {}) != run_id(run_spec(steps=1), {})
    raw = run_spec(steps=1).dump()
    for observe, message in [
        ({"rank": {}}, "train.observe: unknown observer 'rank'; did you mean 'ranks'? (allowed: ranks)"),
        (
            {"ranks": {"evry": 1}},
            "train.observe: options: evry: unknown key 'evry'; did you mean 'every'? (allowed: every, k",
        ),
    ]:
        with pytest.raises(ConfigError) as caught:
            parse(RunSpec, {**raw, "train": {**raw["train"], "observe": observe}}, "run")
        assert str(caught.value).startswith(f"run: {message}")
