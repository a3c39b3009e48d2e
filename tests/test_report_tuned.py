"""Tables of tuned methods: the validation metric chooses, the others are measured where it chose."""

import pytest

from tests.report_lab import SUMMARY, TUNED, runs_of, study

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


def test_values_are_compared_on_the_seeds_that_all_have():
    lora, other = {1e-4: [0.8], 1e-3: [0.9, 0.6, 0.6], 1e-2: [0.7]}, {1e-4: [0.9], 1e-3: [0.8, 0.8]}
    table = tuned(runs_of(lora=lora, other=other))
    row = table.loc["lora"]
    assert (row["best_lr"], row["tuning"], row["status"]) == (1e-3, "learning rate chosen on seed 0 of 3", "ok")
    row = table.loc["other"]  # never a silent worse choice
    assert (row["best_lr"], row["status"], row["seeds"], row["seeds_planned"]) == (1e-4, "partial", 1, 2)
    assert row["cause"] == "learning rate 1e-4 is best over what all values share (seed 0), and was not run with seed 1"


def test_an_interval_ends_where_the_metric_does():
    runs = runs_of(lora=[0.6, 0.99, 0.99]).assign(test_loss=[0.9, 0.01, 0.01], gap=[-1.0, 0.0, 1.0])
    summary = {**SUMMARY, "metrics": ["accuracy", "test_loss", "gap"]}
    row = study(runs, tables={"t": summary}).table("t").iloc[0]
    assert (row["accuracy_high"], row["test_loss_low"]) == (1.0, 0.0)
    assert 0 < row["accuracy_low"] < row["accuracy"]
    assert row["gap_low"] < -2


def test_nothing_has_run():
    runs = runs_of(lora=SWEEP).assign(status="missing", cause="not trained", accuracy=None, val_loss=None)
    row = tuned(runs.drop(columns=["accuracy", "val_loss"])).loc["lora"]
    assert row["status"] == "missing"
    assert row["best_lr"] is None or row["best_lr"] != row["best_lr"]
