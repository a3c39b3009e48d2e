"""Tables of tuned methods: the validation metric chooses, the others are measured where it chose."""

import pytest

from tests.report_lab import TUNED, runs_of, study

SWEEP = {1e-4: [0.70, 0.72], 1e-3: [0.90, 0.91], 1e-2: [0.80, 0.79]}


def tuned(runs, **more):
    return study(runs, tables={"t": {**TUNED, **more}}).table("t").set_index("arm")


def test_the_value_is_chosen_by_validation_and_the_metric_measured_there():
    runs = runs_of(lora=SWEEP)
    runs.loc[runs["lr"] == 1e-3, "accuracy"] = [0.3, 0.5]  # the chosen value need not have the best test metric
    row = tuned(runs).loc["lora"]
    assert (row["best_lr"], row["accuracy"], row["edge"], row["tuning"]) == (1e-3, 0.4, "", "")
    assert row["val_loss"] == pytest.approx(0.095)
    assert row["accuracy_low"] < 0.4 < row["accuracy_high"]
    assert (row["seeds"], row["seeds_planned"], row["status"]) == (2, 2, "ok")


@pytest.mark.parametrize(("goal", "best", "edge"), [("min", 1e-3, ""), ("max", 1e-4, "low")])
def test_the_goal_and_the_edge(goal, best, edge):
    row = tuned(runs_of(lora=SWEEP), goal=goal).loc["lora"]
    assert (row["best_lr"], row["edge"]) == (best, edge)


def test_what_was_not_tuned_says_so():
    runs = runs_of(lora=SWEEP, one={1e-3: [0.5, 0.6]}, unswept=[0.5, 0.6], base=[0.2, 0.2])
    runs.loc[runs["arm"] == "base", "steps"] = 0
    table = tuned(runs)
    assert table.loc["one", "tuning"] == table.loc["unswept", "tuning"] == "learning rate not tuned at this scale"
    assert table.loc["base", "tuning"] == "nothing to tune"
    assert table.loc["unswept", "accuracy"] == 0.55


def test_a_diverged_value_does_not_compete_and_a_missing_one_is_named():
    runs = runs_of(lora=SWEEP)
    best = runs["lr"] == 1e-3
    runs.loc[best & (runs["seed"] == 0), ["status", "val_loss", "accuracy"]] = ["diverged", None, None]
    assert tuned(runs).loc["lora", "best_lr"] == 1e-2
    runs.loc[best & (runs["seed"] == 0), ["status", "cause"]] = ["missing", "not trained"]
    assert "may have been better is missing" in tuned(runs).loc["lora", "tuning"]


def test_nothing_has_run():
    runs = runs_of(lora=SWEEP).assign(status="missing", cause="not trained", accuracy=None, val_loss=None)
    row = tuned(runs.drop(columns=["accuracy", "val_loss"])).loc["lora"]
    assert row["status"] == "missing"
    assert row["best_lr"] is None or row["best_lr"] != row["best_lr"]
