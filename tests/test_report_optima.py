"""Optima, ties, edges and intervals of the report, against numbers worked out by hand or by scipy."""

import itertools
import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from lowrank.errors import ConfigError
from lowrank.report.figures import spread
from lowrank.report.frame import by_seed, read_runs, select, state
from lowrank.report.kinds import Optima, Range
from lowrank.report.optima import find_optima
from lowrank.report.optimum import same_ratio, selects
from lowrank.report.stats import estimate, paired
from lowrank.report.text import number, rate
from tests.report_runs import FULL_BEST, make_runs, spoil

VIEW = Optima(
    kind="optima",
    title="t",
    note="n",
    by=("arm", "rank", "alpha", "budget"),
    axis="lr",
    metric="best_val_loss",
    baseline={"arm": ("full",)},
    match=("budget",),
)


def sweep(losses: dict[float, list[float]], arm: str = "lora") -> pd.DataFrame:
    rows = [
        {"arm": arm, "run": f"{lr}-{seed}", "status": "ok", "cause": "", "seed": seed, "lr": lr, "best_val_loss": loss}
        | {"rank": 8.0, "alpha": 8.0, "budget": "main"}
        for lr, values in losses.items()
        for seed, loss in enumerate(values)
    ]
    return pd.DataFrame(rows)


def only(runs: pd.DataFrame, view: Optima = VIEW):
    (optimum,) = find_optima(runs, view, "test")
    return optimum


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=2, max_size=8))
def test_paired_interval_is_scipys(pairs):
    ours = {seed: pair[0] for seed, pair in enumerate(pairs)}
    other = {seed: pair[1] for seed, pair in enumerate(pairs)}
    found = paired(ours, other)
    if len({ours[seed] - other[seed] for seed in ours}) == 1:
        assert found.low == found.mean == found.high
        return
    interval = ttest_rel(list(ours.values()), list(other.values())).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)


def test_pairs_share_seeds_only():
    assert paired({0: 1.0, 1: 3.0}, {1: 1.0, 2: 9.0}).mean == 2.0
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_one_seed_has_no_interval():
    found = estimate([1.0])
    assert (found.low, found.high, found.certain) == (None, None, False)


def test_clear_optimum():
    found = only(sweep({1e-4: [0.5, 0.51, 0.5], 3e-4: [0.3, 0.31, 0.3], 1e-3: [0.6, 0.61, 0.6]}))
    assert (found.best, found.tied, found.edge, found.runner_up) == (3e-4, (3e-4,), "", 1e-4)
    assert found.between == pytest.approx((math.sqrt(3e-8), math.sqrt(3e-7)))
    assert found.gap.mean == pytest.approx(0.2)


def test_maximum_is_the_other_end():
    runs = sweep({1e-4: [0.5, 0.51], 3e-4: [0.3, 0.31], 1e-3: [0.4, 0.41]})
    assert only(runs, VIEW.model_copy(update={"goal": "max"})).best == 1e-4


def test_tie_is_a_paired_difference_with_zero_inside():
    # The mean of 1e-4 is lower, but seed by seed the sign changes.
    tied = only(sweep({1e-4: [0.30, 0.40, 0.49], 3e-4: [0.32, 0.39, 0.50], 1e-3: [0.8, 0.9, 1.0]}))
    assert tied.best == 1e-4
    assert tied.tied == (1e-4, 3e-4)
    # The spread over seeds is as large, yet every seed agrees: pairing tells them apart.
    told = only(sweep({1e-4: [0.30, 0.40, 0.50], 3e-4: [0.32, 0.42, 0.521], 1e-3: [0.8, 0.9, 1.0]}))
    assert told.tied == (1e-4,)


def test_the_best_is_chosen_on_the_seeds_that_all_values_share():
    # Over all its seeds 1e-3 looks worse than 1e-4; on seed 0, which both have, it is better.
    short = {1e-4: [0.5], 1e-3: [0.4, 0.6, 0.6], 1e-2: [0.9, 0.9, 0.9]}
    found = only(sweep(short))
    assert (found.best, found.common, found.lacks) == (1e-3, (0,), "")
    lacking = only(sweep({1e-4: [0.3], 1e-3: [0.4, 0.4, 0.4]}))
    assert (lacking.best, list(lacking.metric)) == (1e-4, [0])
    wanted = "learning rate 1e-4 is best over what all values share (seed 0), and was not run with seed 1 2"
    assert lacking.lacks == wanted


def test_ties_hold_for_the_whole_grid():
    # Told from the best alone; as one of many values on the same runs, not.
    near = {1e-4: [0.30, 0.40, 0.50], 3e-4: [0.32, 0.427, 0.534]}
    far = {lr: [0.8, 0.9, 1.001] for lr in (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)}
    assert only(sweep(near)).tied == (1e-4,)
    assert only(sweep({**near, **far})).tied == (1e-4, 3e-4)
    assert only(sweep(near)).among(8).tied == (1e-4, 3e-4)


def test_edge_counts_ties_too():
    assert only(sweep({1e-4: [0.3, 0.3], 3e-4: [0.4, 0.4], 1e-3: [0.5, 0.5]})).edge == "low"
    assert only(sweep({1e-4: [0.9, 0.9, 0.9], 3e-4: [0.4, 0.3, 0.35], 1e-3: [0.39, 0.32, 0.36]})).edge == "high"
    assert only(sweep({1e-4: [0.3, 0.3], 3e-4: [0.4, 0.4], 1e-3: [0.5, 0.5]})).between[0] is None


def test_diverged_value_loses_and_closes_the_edge():
    runs = sweep({1e-4: [0.5, 0.5], 3e-4: [0.3, 0.3], 1e-3: [0.2, 0.2]})
    gone = (runs.lr == 1e-3) & (runs.seed == 1)
    runs.loc[gone, ["status", "best_val_loss"]] = ["diverged", float("nan")]
    found = only(runs)
    assert (found.best, found.edge, found.incomplete) == (3e-4, "", False)


def test_missing_run_leaves_the_optimum_incomplete():
    runs = sweep({1e-4: [0.5, 0.5], 3e-4: [0.3, 0.3]})
    runs.loc[(runs.lr == 1e-4) & (runs.seed == 0), ["status", "best_val_loss"]] = ["missing", float("nan")]
    found = only(runs)
    assert found.incomplete
    assert found.best == 3e-4


def test_nothing_finished():
    runs = sweep({1e-4: [0.5]}).drop(columns="best_val_loss")
    runs["status"] = "missing"
    found = only(runs)
    assert (found.best, found.tied, found.ratio) == (None, (), None)


def test_ratios_of_every_configuration(tmp_path):
    runs = make_runs()
    runs.to_csv(tmp_path / "runs.csv", index=False)
    found = find_optima(read_runs(tmp_path / "runs.csv"), VIEW, "test")
    assert len(found) == 18 + 1 + 2 + 1
    for optimum in found:
        if optimum.keys["arm"] == "full":
            assert (optimum.best, optimum.ratio) == (FULL_BEST, 1.0)
        elif optimum.keys["budget"] == "main":
            assert same_ratio(optimum.ratio, 10 if optimum.keys["alpha"] <= optimum.keys["rank"] else 10 / 3)
            low, high = optimum.ratio_between
            assert low < optimum.ratio < high
            assert high / low == pytest.approx(10, rel=0.2)
    assert not same_ratio(10, 10 / 3)


def test_blank_epochs_are_the_main_budget(tmp_path):
    runs = make_runs(seeds=(0,))
    runs["epochs"] = runs["epochs"].where(runs["epochs"] == 10)
    runs.to_csv(tmp_path / "runs.csv", index=False)
    budget = read_runs(tmp_path / "runs.csv").groupby("budget").size()
    assert budget["long"] == 15
    assert budget["main"] == 95


def test_select_and_its_errors():
    runs = make_runs(seeds=(0,), long=False)
    assert set(select(runs, {"alpha": (32, None)}, "x")["alpha"].dropna()) == {32}
    assert select(runs, {"rank": Range(above=32, at_most=128)}, "x")["rank"].unique().tolist() == [64, 128]
    assert len(select(runs, {"lr": ("1e-4",)}, "x")) == 19
    with pytest.raises(ConfigError, match=r"tables.fig1: unknown column 'alhpa'; did you mean 'alpha'"):
        select(runs, {"alhpa": (1,)}, "tables.fig1")


def test_range_leaves_out_missing_values():
    found = find_optima(sweep({1e-4: [0.5], 3e-4: [0.3]}, arm="full").assign(rank=float("nan")), VIEW, "test")[0]
    assert not selects({"rank": Range(other_than=8)}, found)
    assert selects({"rank": (None,)}, found)


def test_state_names_what_is_missing():
    runs = make_runs(long=False)
    cell = runs[(runs["rank"] == 8) & (runs["alpha"] == 8) & (runs["lr"] == 1e-4)]
    assert state(cell) == ("ok", "")
    assert state(spoil(cell, cell.seed == 42, "failed", "out of memory")) == ("partial", "1 of 3 failed: out of memory")
    assert state(spoil(cell, cell.seed > 0, "missing", "")) == ("missing", "3 of 3 missing")


def test_two_runs_of_one_seed_are_refused():
    runs = make_runs(long=False)
    with pytest.raises(ConfigError, match="leaves out a swept axis"):
        by_seed(runs[runs["lr"] == 1e-4], "best_val_loss")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_spread_keeps_order_and_distance(heights):
    placed = spread(heights, 0.05)
    order = sorted(range(len(heights)), key=heights.__getitem__)
    gaps = [placed[b] - placed[a] for a, b in itertools.pairwise(order)]
    assert all(gap >= 0.05 - 1e-9 for gap in gaps)
    assert sum(placed) == pytest.approx(sum(heights), abs=1e-6)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.25119, "0.2512"), (3e-5, "3e-5"), (10.0, "10"), (10 / 3, "3.33"), (None, "–"), (float("nan"), "–"), ("x", "x")],
)
def test_numbers_for_readers(value, shown):
    assert number(value) == shown


def test_rates_for_readers():
    shown = {
        3e-2: "3e-2",
        1e-2: "1e-2",
        0: "0",
        1e-3: "1e-3",
        1.78e-4: "1.78e-4",
        0.0625: "0.0625",
        0.5: "0.5",
        1: "1",
        33.3333: "33.3",
    }
    assert {value: rate(value) for value in shown} == shown
