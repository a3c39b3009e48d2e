"""What stands behind a verdict, and how much of it rests on one seed."""

from __future__ import annotations

import pytest

from lowrank.report.behind import rows_behind, runs_behind
from lowrank.report.columns import PLAIN
from lowrank.report.context import Context
from lowrank.report.seed_page import seeds_section
from lowrank.report.seeds import left_out, sensitivity, spread
from tests.report_lab import SUMMARY, TUNED, runs_of, study

CLAIM = {"check": "compare", "table": "t", "metric": "accuracy", "goal": "max"}
CLAIM |= {"better": {"arm": ["lora"]}, "worse": {"arm": ["full"]}}
WITHIN = {"check": "within", "table": "t", "column": "accuracy", "where": {"arm": ["lora"]}, "at_least": 0.5}
SURE = {"lora": [0.90, 0.91, 0.92], "full": [0.80, 0.81, 0.82], "hira": [0.1, 0.2, 0.3]}


def lab(scale: str = "laptop", **arms: list[float]) -> Context:
    claims = {"c": CLAIM, "w": {**WITHIN, "reason": "r"}, "u": {"check": "unmeasurable", "reason": "r"}}
    return study(runs_of(**arms), scale=scale, tables={"t": SUMMARY}, claims=claims)


def test_a_claim_rests_on_the_rows_that_it_names_and_their_runs() -> None:
    context = lab(**SURE)
    rows = rows_behind(context, context.views.claims["c"])
    assert [context.table("t")["arm"][row] for row in rows] == ["full", "lora"]
    assert set(runs_behind(context, "t", rows)) == {f"{arm}-lrNone-s{s}" for arm in ("full", "lora") for s in range(3)}
    assert rows_behind(context, context.views.claims["u"]) == []
    failed = lab(**SURE)
    failed.runs.loc[failed.runs["arm"] == "lora", "status"] = "failed"
    assert len(runs_behind(failed, "t", rows)) == 3


def test_of_a_tuned_row_only_the_chosen_runs_stand_behind() -> None:
    runs = runs_of(lora={1e-3: [0.9, 0.9], 1e-2: [0.5, 0.5]})
    context = study(runs, tables={"t": TUNED}, claims={"c": CLAIM})
    assert runs_behind(context, "t", rows_behind(context, context.views.claims["c"])) == [
        "lora-lr0.001-s0",
        "lora-lr0.001-s1",
    ]


def test_a_verdict_is_asked_again_without_each_seed() -> None:
    everywhere = {"0": "reproduced", "1": "reproduced", "2": "reproduced"}
    assert left_out(lab(**SURE)) == {"c": everywhere, "w": everywhere}
    # The third seed contradicts the others, which agree to the last digit.
    found = left_out(lab(lora=[0.9, 0.9, 0.1], full=[0.8, 0.8, 0.8]))["c"]
    assert found == {"0": "not resolved", "1": "not resolved", "2": "reproduced"}
    assert left_out(lab(lora=[0.9], full=[0.8])) == {}
    assert left_out(lab("smoke", **SURE)) == {}


def test_without_its_only_seed_a_claim_is_not_run() -> None:
    context = lab(**SURE)
    keep = (context.runs["arm"] == "hira") | (context.runs["seed"] == 0)
    context.runs = context.runs[keep].reset_index(drop=True)
    assert left_out(context)["c"] == {"0": "not run", "1": "not resolved", "2": "not resolved"}


@pytest.mark.parametrize(
    ("verdict", "without", "told"),
    [
        ("reproduced", ("reproduced", "reproduced"), "stays"),
        ("reproduced", ("reproduced", "not resolved"), "opens"),
        ("reproduced", ("not resolved", "differs"), "turns"),
        ("differs", ("reproduced", "differs"), "turns"),
        ("not resolved", ("not resolved", "not run"), "stays"),
        ("not resolved", ("not resolved", "differs"), "settles"),
    ],
)
def test_what_a_seed_does_to_a_verdict(verdict: str, without: tuple[str, ...], told: str) -> None:
    assert sensitivity(verdict, dict(zip("012", without, strict=False))) == told


def test_the_spread_is_of_what_claims_look_at() -> None:
    rows = {row["configuration"]: row for row in spread(lab(**SURE))}
    assert set(rows) == {"lora", "full"}
    assert rows["lora"]["mean"] == pytest.approx(0.91)
    assert rows["lora"]["sd"] == pytest.approx(0.01)
    assert (rows["lora"]["lowest"], rows["lora"]["highest"], rows["lora"]["seeds"]) == (0.90, 0.92, 3)


def test_the_page_counts_them_and_links_each_sentence() -> None:
    entries = [
        {"id": "C1", "verdict": "differs", "without_seed": {"0": "differs", "1": "reproduced"}},
        {"id": "C2", "verdict": "reproduced", "without_seed": {"0": "reproduced", "1": "reproduced"}},
        {"id": "C3", "verdict": "impossible", "without_seed": None},
    ]
    text = seeds_section({"entries": entries, "spread": spread(lab(**SURE))}, PLAIN)
    assert "Of 2 sentences" in text
    assert "1 turn to the opposite, 1 stay as they are" in text
    assert '<a href="#C1">' in text
    assert 'href="#C3"' not in text
    assert seeds_section({"entries": entries[2:], "spread": []}, PLAIN) == ""
