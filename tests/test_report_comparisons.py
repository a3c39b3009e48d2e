"""Claims about any table: each verdict from runs whose truth is known, and what stands in the way named."""

import pytest
from scipy.stats import ttest_rel

from lowrank.errors import ConfigError
from tests.report_lab import SUMMARY, TUNED, runs_of, study

COMPARE = {"check": "compare", "table": "t", "metric": "accuracy", "goal": "max"}
COMPARE |= {"better": {"arm": ["lora"]}, "worse": {"arm": ["full"]}}

HIGH, LOW, NEAR = [0.90, 0.91, 0.92], [0.80, 0.82, 0.81], [0.90, 0.93, 0.90]


def found(runs, table=SUMMARY, **claim):
    return study(runs, tables={"t": table}, claims={"c": {**COMPARE, **claim}}).check("c")


@pytest.mark.parametrize(
    ("lora", "full", "claim", "verdict"),
    [
        (HIGH, LOW, {}, "reproduced"),
        (LOW, HIGH, {}, "differs"),
        (HIGH, NEAR, {}, "not resolved"),
        (HIGH, LOW, {"goal": "min"}, "differs"),
        (HIGH[:1], LOW[:1], {}, "not resolved"),
        (HIGH, NEAR, {"equal_within": 0.06}, "reproduced"),
        (HIGH, NEAR, {"equal_within": 0.001}, "not resolved"),
        (HIGH, LOW, {"equal_within": 0.01}, "differs"),
        (HIGH, LOW, {"equal_within": 0.01, "or_better": True}, "reproduced"),
        (LOW, HIGH, {"equal_within": 0.01, "or_better": True}, "differs"),
    ],
)
def test_one_side_beats_the_other(lora, full, claim, verdict):
    result = found(runs_of(lora=lora, full=full), **claim)
    assert result.verdict == verdict, result
    assert ("one seed" in result.cause) == (len(lora) == 1)


def test_the_interval_is_the_paired_one_and_is_named():
    result = found(runs_of(lora=HIGH, full=LOW))
    interval = ttest_rel(HIGH, LOW).confidence_interval(0.95)
    assert f"95% paired t over 3 seeds: {interval.low:+.4f} to {interval.high:+.4f}" in result.cause


@pytest.mark.parametrize(
    ("full", "allowed", "verdict"),
    [(HIGH, 0.0, "reproduced"), (NEAR, 0.021, "reproduced"), (NEAR, 0.019, "differs"), (LOW[:1], 0.01, "differs")],
)
def test_untrained_models_are_the_same_in_every_seed_or_differ(full, allowed, verdict):
    result = found(runs_of(lora=HIGH[: len(full)], full=full), equal_within=allowed, untrained=True)
    assert result.verdict == verdict, result


def test_untrained_models_without_a_seed_in_common_are_left_open():
    apart = runs_of(lora=HIGH[:1], full=HIGH).query("arm == 'lora' or seed > 0")
    assert found(apart, equal_within=0.0, untrained=True).verdict == "not resolved"


def test_words_say_what_the_interval_says():
    assert "lora is not told apart from full: accuracy +0.0000" in found(runs_of(lora=HIGH, full=NEAR)).cause
    equal = found(runs_of(lora=HIGH, full=NEAR), equal_within=0.06).cause
    assert "lora is within ±0.06 of full" in equal
    assert equal.endswith("allowed ±0.06")
    worse = found(runs_of(lora=HIGH, full=NEAR), equal_within=0.06, or_better=True)
    assert "lora is at most 0.06 worse than full" in worse.cause
    assert worse.cause.endswith("allowed -0.06 or better")
    assert worse.evidence[0].endswith("allowed -0.06 or better")
    loss = found(runs_of(lora=HIGH, full=NEAR), goal="min", equal_within=0.06, or_better=True)
    assert loss.cause.endswith("allowed +0.06 or better")


def test_one_of_several_needs_more_than_its_own_interval():
    near = [0.895, 0.90, 0.92]  # less than HIGH by 0.005, 0.01, 0: no
    worse = [0.90 - 0.02, 0.91 - 0.03, 0.92 - 0.04]
    assert found(runs_of(lora=worse, full=HIGH)).verdict == "differs"
    arms = {"better": {"arm": ["lora"]}, "worse": {"arm": ["full", "b", "c"]}}
    several = found(runs_of(lora=worse, full=HIGH, b=near, c=[0.86, 0.89, 0.9]), **arms)
    assert several.verdict == "not resolved"
    assert "by itself this would decide, as one of several comparisons it does not (Holm)" in several.cause


def test_less_is_shown_as_less_where_less_is_better():
    result = found(runs_of(lora=LOW, full=HIGH), goal="min")
    assert result.verdict == "reproduced"
    assert "lora beats full: accuracy -0.1" in result.cause


def test_pairs_agree_in_by_and_all_of_them_must_hold():
    easy, hard = runs_of(lora=HIGH, full=LOW).assign(data="easy"), runs_of(lora=LOW, full=HIGH).assign(data="hard")
    both = type(easy)({column: [*easy[column], *hard[column]] for column in easy})
    table = {**SUMMARY, "by": ["arm", "data"]}
    assert found(both, table, by=["data"]).cause.startswith("1 of 2: lora, hard loses to full, hard")
    assert found(both, table, by=["data"], anywhere=True).verdict == "reproduced"
    assert found(both, table, by=["data"], anywhere=True, goal="min").verdict == "reproduced"
    evidence = found(both, table).evidence
    assert len(evidence) == 5
    assert evidence[-1].startswith("2 comparisons")  # two of the four are the same for each seed, and no tests


def test_a_missing_seed_leaves_it_open_and_a_diverged_side_has_lost():
    runs = runs_of(lora=HIGH, full=LOW)
    lost = (runs["arm"] == "full") & (runs["seed"] == 2)
    runs.loc[lost, ["status", "cause", "accuracy"]] = ["failed", "out of memory", None]
    assert found(runs).verdict == "not resolved"
    assert "out of memory" in found(runs).cause
    runs.loc[runs["arm"] == "full", ["status", "accuracy"]] = ["diverged", None]
    assert (found(runs).verdict, found(runs).cause) == ("reproduced", "full diverged")
    runs.loc[runs["arm"] == "full", ["status", "cause"]] = ["missing", "not trained"]
    assert found(runs).verdict == "not run"
    assert found(runs_of(lora=HIGH)).verdict == "not run"


def test_a_tuned_loser_at_the_edge_of_its_grid_may_do_better():
    inside = {1e-4: [0.1, 0.1, 0.1], 1e-3: HIGH, 1e-2: [0.1, 0.1, 0.1]}
    edge = {1e-4: [0.1, 0.1, 0.1], 1e-3: [0.2, 0.2, 0.2], 1e-2: LOW}
    result = found(runs_of(lora=inside, full=edge), TUNED)
    assert result.verdict == "not resolved"
    assert "full was tuned to the high edge of its grid" in result.cause
    assert found(runs_of(lora=edge, full={**inside, 1e-3: [0.5, 0.5, 0.51]}), TUNED).verdict == "reproduced"
    untuned = found(runs_of(lora=inside, full={1e-3: LOW}), TUNED)
    assert untuned.verdict == "reproduced"
    assert "full: learning rate not tuned at this scale" in untuned.cause


def test_a_best_rate_without_the_other_seeds_leaves_it_open():
    runs = runs_of(lora={1e-4: [0.95], 1e-3: HIGH, 1e-2: [0.5]}, full={1e-4: [0.1], 1e-3: LOW, 1e-2: [0.1]})
    result = found(runs, TUNED)
    assert result.verdict == "not resolved"
    assert "lora: learning rate 1e-4 is best over what all values share (seed 0)" in result.cause


ORDER = {"check": "order", "table": "t", "metric": "accuracy", "goal": "max"}


def ranked(*names):
    return {**ORDER, "ranking": [{"arm": [name]} for name in names]}


@pytest.mark.parametrize(
    ("ranking", "verdict"),
    [
        (("a", "b", "c"), "reproduced"),
        (("a", "c", "b"), "differs"),
        (("a", "b", "near"), "differs"),
        (("a", "near", "c"), "not resolved"),
        (("a", "b", "gone"), "not run"),
    ],
)
def test_a_ranking_holds_where_every_pair_does(ranking, verdict):
    runs = runs_of(a=HIGH, near=NEAR, b=LOW, c=[0.7, 0.71, 0.71])
    assert study(runs, tables={"t": SUMMARY}, claims={"c": ranked(*ranking)}).check("c").verdict == verdict


RISING = {**ORDER, "goal": "min", "along": "groups"}


@pytest.mark.parametrize(
    ("middle", "claim", "verdict"),
    [
        ([0.7, 0.71, 0.71], {"best": "most"}, "reproduced"),
        ([0.7, 0.71, 0.71], {"best": "least"}, "differs"),
        (NEAR, {"best": "most"}, "not resolved"),
    ],
)
def test_an_order_along_a_column_has_every_row_in_the_order_of_its_numbers(middle, claim, verdict):
    runs = runs_of(a=HIGH, b=middle, c=[0.5, 0.51, 0.52])
    runs["groups"] = runs["arm"].map({"a": "8,11", "b": "16,22", "c": "128,172"})
    context = study(runs, tables={"t": {**SUMMARY, "by": ["groups"]}}, claims={"c": {**RISING, **claim}})
    result = context.check("c")
    assert result.verdict == verdict, result
    assert sum(" against " in line for line in result.evidence) == 3, "each pair, the middle one's too"


def test_an_order_needs_numbers_and_one_way_of_ordering():
    with pytest.raises(ConfigError, match=r"arm 'a' is no number; allowed: numbers, separated by commas"):
        study(runs_of(a=HIGH), tables={"t": SUMMARY}, claims={"c": {**RISING, "along": "arm"}}).check("c")
    with pytest.raises(ConfigError, match="give ranking, or along"):
        study(runs_of(a=HIGH), tables={"t": SUMMARY}, claims={"c": ORDER})


def test_rows_that_a_claim_passes_over_need_a_reason():
    runs = runs_of(few=LOW, some=NEAR, many=HIGH)
    runs["groups"], runs["arm"] = runs["arm"].map({"few": 1, "some": 2, "many": 4}), "velora"
    table = {**SUMMARY, "by": ["arm", "groups"]}
    sides = {"better": {"groups": [4]}, "worse": {"groups": [1]}}
    with pytest.raises(
        ConfigError, match=r"rows along groups are in no side: .*2.*allowed: all of them, or leaves_out"
    ):
        found(runs, table, **sides)
    result = found(runs, table, **sides, leaves_out="two were not asked for")
    assert result.verdict == "reproduced"
    assert result.evidence[-1] == "left out: two were not asked for"
    assert found(runs_of(lora=HIGH, full=LOW, other=NEAR)).verdict == "reproduced", "a sentence names its methods"


WITHIN = {"check": "within", "table": "t", "column": "accuracy", "reason": "r", "where": {"arm": ["lora"]}}


@pytest.mark.parametrize(
    ("values", "bounds", "verdict"),
    [
        (HIGH, {"at_least": 0.8}, "reproduced"),
        (HIGH, {"at_least": 0.8, "at_most": 0.85}, "differs"),
        (HIGH, {"at_least": 0.91}, "not resolved"),
        (HIGH, {"equals": 0.91, "tolerance": 0.05}, "reproduced"),
        (HIGH, {"equals": 0.91}, "not resolved"),
        (HIGH[:1], {"at_least": 0.8}, "not resolved"),
    ],
)
def test_a_value_lies_within_bounds_with_its_interval(values, bounds, verdict):
    result = study(runs_of(lora=values), tables={"t": SUMMARY}, claims={"c": {**WITHIN, **bounds}}).check("c")
    assert result.verdict == verdict, result
    assert result.evidence[-1].endswith("since r")


def test_computed_tables_are_exact():
    rows = [{"label": "a", "formula": "2"}, {"label": "b", "formula": "6 / 2", "printed": 3}]
    tables = {"t": {"kind": "arithmetic", "title": "t", "note": "n", "rows": rows}}
    claims = {
        "less": {**COMPARE, "metric": "value", "goal": "min", "better": {"label": ["a"]}, "worse": {"label": ["b"]}},
        "more": {**COMPARE, "metric": "value", "better": {"label": ["a"]}, "worse": {"label": ["b"]}},
        "three": {**WITHIN, "where": {"label": ["b"]}, "column": "value", "equals": 3},
    }
    context = study(runs_of(), tables=tables, claims=claims)
    verdicts = {name: context.check(name).verdict for name in claims}
    assert verdicts == {"less": "reproduced", "more": "differs", "three": "reproduced"}


def test_times_of_several_devices_are_not_compared():
    runs = runs_of(lora=HIGH, full=LOW).rename(columns={"accuracy": "step_time_s"})
    runs["device"] = ["fast", "slow"] * 3
    table = {**SUMMARY, "metrics": ["step_time_s"]}
    result = found(runs, table, metric="step_time_s")
    assert result.verdict == "not resolved"
    assert "measured on several devices (fast, slow)" in result.cause
    assert found(runs.assign(device="fast"), table, metric="step_time_s").verdict == "reproduced"
    named = study(runs, tables={"t": {**table, "by": ["arm", "device"]}}).table("t")
    assert named["step_time_s"].notna().all()


def test_faults_name_the_place():
    with pytest.raises(ConfigError, match="lab: claims: unknown column 'acuracy'; did you mean 'accuracy'"):
        found(runs_of(lora=HIGH, full=LOW), metric="acuracy")
    with pytest.raises(ConfigError, match="or_better needs equal_within"):
        found(runs_of(lora=HIGH), or_better=True)
    with pytest.raises(ConfigError, match="untrained needs equal_within"):
        found(runs_of(lora=HIGH, full=LOW), untrained=True)
    with pytest.raises(ConfigError, match="give equals"):
        study(runs_of(lora=HIGH), tables={"t": SUMMARY}, claims={"c": WITHIN})
