"""A published number against ours: its whole interval decides, and none decides nothing."""

from __future__ import annotations

from typing import Any

import pytest

from lowrank.report.context import Context
from lowrank.report.ledger import Artefact, Entry
from lowrank.report.verdicts import VERDICTS, Finding, decide, reproduced, told
from lowrank.report.views import parse_views
from lowrank.strict import parse
from tests.report_lab import SUMMARY, runs_of, study

TABLES = {
    "t": SUMMARY,
    "set": {"kind": "settings", "title": "t", "note": "n", "columns": ["steps"]},
    "exact": {"kind": "arithmetic", "title": "t", "note": "n", "rows": [{"label": "two", "formula": "2"}]},
    "twice": {
        "kind": "arithmetic",
        "title": "t",
        "note": "n",
        "rows": [
            {
                "label": "a",
                "formula": "2 * x",
                "values": {"x": {"table": "t", "row": {"arm": "a"}, "column": "accuracy"}},
            }
        ],
    },
}


def found(values: list[float], cell: dict[str, Any] | None = None, **entry: Any) -> dict[str, Any]:
    context: Context = study(runs_of(a=values), scale="paper", tables=TABLES)
    cell = {"table": "t", "row": {"arm": "a"}, "column": "accuracy"} if cell is None else cell
    raw = {"id": "e", "line": 1, "kind": "numeric", "value": 0.9, "cell": cell, **entry}
    return decide(context, Artefact.model_construct(id="A", title="t", count=1, entries=()), parse(Entry, raw, "e"))


@pytest.mark.parametrize(
    ("values", "rule", "verdict"),
    [
        ([0.899, 0.900, 0.901], {"tolerance": 0.01}, "reproduced"),
        ([0.88, 0.90, 0.92], {"tolerance": 0.01}, "not resolved"),
        ([0.880, 0.881, 0.882], {"tolerance": 0.01}, "differs"),
        ([0.880, 0.881, 0.882], {"tolerance": 0.01, "reading": 0.02}, "reproduced"),
        ([0.880, 0.881, 0.882], {"factor": 1.1}, "reproduced"),
        ([0.880, 0.881, 0.882], {"factor": 1.01}, "differs"),
        ([0.9], {"tolerance": 0.01}, "not resolved"),
    ],
)
def test_the_whole_interval_decides(values: list[float], rule: dict[str, float], verdict: str) -> None:
    record = found(values, **rule)
    assert record["verdict"] == verdict, record["cause"]
    assert ("one seed" in record["cause"]) == (len(values) == 1)


def test_what_is_computed_is_exact_and_what_follows_from_runs_is_not() -> None:
    two = {"table": "exact", "row": {"label": "two"}, "column": "value"}
    assert found([0.9], two, kind="analytic", value=2, tolerance=0)["verdict"] == "reproduced"
    assert found([0.9], two, kind="analytic", value=2.1, tolerance=0)["verdict"] == "differs"
    twice = {"table": "twice", "row": {"label": "a"}, "column": "value"}
    record = found([0.9, 0.9, 0.9], twice, value=1.8, tolerance=0.1)
    assert (record["verdict"], record["cause"]) == ("not resolved", "no interval over seeds")


def test_a_setting_is_ours_by_construction_or_not_run() -> None:
    steps = {"table": "set", "row": {"setting": "steps"}, "column": "values"}
    assert found([0.9], steps, value=10, among=True)["verdict"] == "by construction"
    assert found([0.9], steps, value=20, among=True)["verdict"] == "not run"


def test_reproductions_are_counted_as_measured_or_computed_and_by_construction_as_neither() -> None:
    views = parse_views({"tables": TABLES}, "s")
    tables = ["t", "twice", "exact", "set", None]
    entries = [{"verdict": verdict, "table": table} for verdict in VERDICTS for table in tables]
    split = reproduced(views, entries)
    assert split == {"measured": 2, "computed": 3}
    assert told("reproduced", 5, split) == "5 reproduced (2 measured, 3 computed)"
    assert told("by construction", 5, split) == "5 by construction"


def test_a_claim_may_hold_by_construction() -> None:
    claim = {"check": "by_construction", "reason": "this page draws it"}
    context = study(runs_of(a=[0.9]), claims={"c": claim})
    assert context.check("c") == Finding("by construction", "this page draws it")
