"""Intervals over seeds and items, p values, equivalence, and what several comparisons decide together."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t, ttest_1samp

from lowrank.errors import IntegrityError
from lowrank.report.items import items_of
from lowrank.report.judging import chances, judge, shown_difference
from lowrank.report.stats import LEVEL, Estimate, Items, estimate, holm, paired
from tests.report_lab import SUMMARY, runs_of, study

OURS, OTHER = {0: 0.75, 1: 0.5}, {0: 0.25, 1: 0.25}
RIGHT = {0: np.array([1.0, 1, 1, 0]), 1: np.array([1.0, 0, 1, 0])}
WRONG = {0: np.array([1.0, 0, 0, 0]), 1: np.array([1.0, 0, 0, 0])}


def test_seeds_and_items_both_count():
    found = paired(OURS, OTHER, Items(RIGHT, ("test",)), Items(WRONG, ("test",)))
    over_seeds = np.std([0.5, 0.25], ddof=1) / math.sqrt(2)
    over_items = np.std([0, 0.5, 1, 0], ddof=1) / math.sqrt(4)  # each item's difference, averaged over the seeds
    half = math.hypot(t.ppf(0.975, 1) * over_seeds, t.ppf(0.975, 3) * over_items)
    assert (found.mean, found.seeds, found.items) == (0.375, 2, 4)
    assert (found.low, found.high) == pytest.approx((0.375 - half, 0.375 + half))
    assert "over 2 seeds and 4 items" in shown_difference(found)


def test_items_of_two_splits_are_not_paired():
    found = paired(OURS, OTHER, Items(RIGHT, ("test",)), Items(WRONG, ("other",)))
    spread = np.var([1, 0.5, 1, 0], ddof=1) / 4 + np.var([1, 0, 0, 0], ddof=1) / 4
    assert found.items_error == pytest.approx(math.sqrt(spread))


def test_the_interval_covers_what_another_test_split_would_show():
    # No true difference; items that one side is better at, seeds, and chance of both, as in three runs on 440 texts.
    rng, covered = np.random.default_rng(1), {"seeds": 0, "both": 0}
    nothing = Items(dict.fromkeys(range(3), np.zeros(440)), ("test",))
    for _ in range(300):
        of_items = rng.normal(0, 0.3, 440)
        ours = {seed: of_items + rng.normal(0, 0.01) + rng.normal(0, 0.2, 440) for seed in range(3)}
        means = {seed: float(values.mean()) for seed, values in ours.items()}
        zeros = dict.fromkeys(range(3), 0.0)
        for name, items in (("seeds", (None, None)), ("both", (Items(ours, ("test",)), nothing))):
            found = paired(means, zeros, *items)
            covered[name] += found.low <= 0 <= found.high
    assert covered["both"] >= 0.95 * 300
    assert covered["seeds"] < 0.87 * 300


def test_the_same_few_texts_for_every_seed_resolve_nothing():
    # One text of eight more is right, for every seed: no spread over seeds, and still no more than one text.
    ours, other = np.array([1.0, 1, 1, 1, 1, 0, 0, 0]), np.array([1.0, 1, 1, 1, 0, 0, 0, 0])
    sides = [Items(dict.fromkeys(range(3), side), ("test",)) for side in (ours, other)]
    values = [{seed: float(side.values[0].mean()) for seed in range(3)} for side in sides]
    assert paired(*values).low > 0
    assert paired(*values, *sides).low < 0


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=6), st.integers(-60, 60))
def test_p_values_are_scipys_and_agree_with_the_interval(values, limit):
    found = estimate([float(value) for value in values])
    p = found.above(limit)
    if len(set(values)) == 1:
        assert p == (0.0 if values[0] > limit else 1.0)
        return
    exact = ttest_1samp(values, limit, alternative="greater").pvalue
    assert p == (pytest.approx(exact, rel=1e-6) if found.mean > limit else 1.0)
    assert (p <= LEVEL) == (found.low > limit)
    assert found.below(limit) == found.minus().above(-limit)


def test_no_interval_decides_nothing():
    assert estimate([5.0]).above(0.0) == 1.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.01], 4) == pytest.approx([0.04])
    assert holm([]) == []


def gain(mean, error, seeds=3):
    return Estimate(mean, seeds, error)


@pytest.mark.parametrize(
    ("found", "margin", "verdict"),
    [
        (gain(0.0, 0.001), 0.01, "reproduced"),
        (gain(0.0, 0.1), 0.01, "not resolved"),  # a wide interval is no equality
        (gain(0.02, 0.001), 0.01, "differs"),
        (gain(0.01, 0.0), 0.01, "reproduced"),
        (gain(0.011, 0.0), 0.01, "differs"),
    ],
)
def test_equality_needs_the_whole_interval_within_the_margin(found, margin, verdict):
    assert judge([chances(found, margin)]) == [(verdict, False)]


def test_one_of_many_is_corrected_and_all_at_once_are_not():
    against, for_it = gain(-1.0, 0.2), gain(1.0, 0.2)
    assert judge([chances(against)]) == [("differs", False)]
    assert judge([chances(one) for one in (against, for_it, for_it)]) == [
        ("not resolved", True),
        ("reproduced", False),
        ("reproduced", False),
    ]
    assert judge([chances(one) for one in (against, for_it)], anywhere=True) == [
        ("differs", False),
        ("not resolved", True),
    ]
    assert judge([chances(for_it)], anywhere=True, count=5) == [("not resolved", True)]
    # What nothing varies in is no test and costs the others nothing.
    assert judge([chances(against), chances(gain(0.0, 0.0, 0))])[0] == ("differs", False)


def with_items(folder, runs, right):
    """A study whose runs have an evaluation `test` with these right answers by arm."""
    for run in runs.to_dict("records"):
        file = folder / "runs" / run["run"] / "eval" / "test-1.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"items": {"correct": right[run["arm"]], "loss": [0.5, 1.5, 1.0, 1.0]}}))
    context = study(runs.rename(columns={"accuracy": "test_accuracy"}), folder, tables={"t": SUMMARY})
    context.asked = {"test": "test-1"}
    return context


def test_items_are_read_from_the_evaluation(tmp_path):
    runs = runs_of(lora=[0.75, 0.75], full=[0.5, 0.5]).assign(data_title="texts", test_perplexity=math.e)
    context = with_items(tmp_path, runs, {"lora": [1, 1, 1, 0], "full": [1, 1, 0, 0]})
    lora = context.runs[context.runs["arm"] == "lora"]
    found = items_of(context, lora, "test_accuracy")
    assert found.values[1].tolist() == [1, 1, 1, 0]
    assert found.split == ("test-1", "texts")
    assert items_of(context, lora, "test_perplexity").values[0] == pytest.approx(math.e * np.array([0.5, 1.5, 1, 1]))
    assert items_of(context, lora, "val_loss") is None
    assert items_of(context, lora, "test_f1") is None
    (tmp_path / "runs" / lora["run"].iloc[0] / "eval" / "test-1.json").write_text('{"items": {"correct": [1, 0]}}')
    context.items.clear()
    with pytest.raises(IntegrityError, match=r"have \[2, 4\] items"):
        items_of(context, lora, "test_accuracy")


def test_a_claim_counts_the_items_of_both_sides(tmp_path):
    runs = runs_of(lora=[0.75, 0.75, 0.75], full=[0.5, 0.5, 0.5]).assign(data_title="texts")
    context = with_items(tmp_path, runs, {"lora": [1, 1, 1, 0], "full": [1, 1, 0, 0]})
    context.views.tables["t"] = context.views.tables["t"].model_copy(update={"metrics": ("test_accuracy",)})
    rule = {"check": "compare", "table": "t", "metric": "test_accuracy", "goal": "max"}
    sides = {"better": {"arm": ["lora"]}, "worse": {"arm": ["full"]}}
    claims = study(runs, tables={"t": SUMMARY}, claims={"c": {**rule, **sides}}).views.claims
    context.views.claims.update(claims)
    found = context.check("c")
    assert found.verdict == "not resolved"
    assert "lora is not told apart from full" in found.cause
    assert "3 seeds and 4 items" in found.cause
