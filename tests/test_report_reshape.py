"""Tables made from others: columns as rows, means of groups, lists taken apart; and claims that no run decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lowrank.errors import ConfigError
from lowrank.report import reshape
from lowrank.report.comparisons import unmeasurable
from lowrank.report.context import Context
from lowrank.report.kinds import UnmeasurableClaim
from lowrank.report.ledger import Ledger
from lowrank.report.views import parse_views

FROM = {"kind": "settings", "title": "t", "note": "n", "columns": []}


def made(frame: pd.DataFrame, **view: Any) -> pd.DataFrame:
    """The table that `view` makes of a table `source`."""
    views = parse_views(
        {"tables": {"source": FROM, "made": {"title": "t", "note": "n", "table": "source", **view}}}, "x"
    )
    ledger = Ledger(study="x", document="x.md", artefacts=())
    context = Context("x", "laptop", views, ledger, pd.DataFrame(), Path(), Path(), tables={"source": frame})
    found = {"unpivot": reshape.unpivot, "averages": reshape.averages}[view["kind"]](context, "made")
    return pd.DataFrame(found)


WIDE = pd.DataFrame(
    {
        "arm": ["a", "b"],
        "short_loss": [1.0, 2.0],
        "short_loss_low": [0.5, None],
        "long_loss": [3.0, None],
        "status": ["ok", "partial"],
        "cause": ["", "1 missing"],
    }
)
UNPIVOT = {"kind": "unpivot", "keep": ["arm"], "into": "rows", "stems": {"short": "1 short", "long": "2 long"}}


def test_columns_become_rows_with_their_intervals_and_causes() -> None:
    found = made(WIDE, **UNPIVOT, metrics=["loss"])
    assert found[["arm", "rows"]].values.tolist() == [
        ["a", "1 short"],
        ["a", "2 long"],
        ["b", "1 short"],
        ["b", "2 long"],
    ]
    assert found["loss"].tolist()[:3] == [1.0, 3.0, 2.0]
    assert pd.isna(found["loss"].iloc[3])
    assert found["loss_low"].iloc[0] == 0.5
    assert found["cause"].tolist() == ["", "", "1 missing", "1 missing"]


def test_a_stem_without_its_column_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown column 'short_accuracy'"):
        made(WIDE, **UNPIVOT, metrics=["accuracy"])


ROWS = pd.DataFrame(
    {
        "arm": ["a", "a", "b", "b"],
        "part": ["x", "x", "x", "y"],
        "norm": [1.0, 3.0, None, 7.0],
        "values": [[4.0, 2.0], [2.0, 0.0], [1.0], None],
    }
)


def test_means_of_groups_leave_out_what_is_missing() -> None:
    found = made(ROWS, kind="averages", by=["arm"], metrics=["norm"])
    assert found.values.tolist() == [["a", 2.0, 2], ["b", 7.0, 2]]
    assert made(ROWS, kind="averages", by=["arm"], metrics=["norm"], where={"part": ["y"]}).values.tolist() == [
        ["b", 7.0, 1]
    ]


def test_lists_are_averaged_place_by_place() -> None:
    found = made(ROWS, kind="averages", by=["arm"], metrics=["values"])
    assert found.values.tolist() == [["a", 1, 3.0, 2], ["a", 2, 1.0, 2], ["b", 1, 1.0, 1]]


def test_only_the_latest_rows_of_each_group() -> None:
    found = made(ROWS.assign(step=[1, 2, 5, 4]), kind="averages", by=["arm"], metrics=["values"], latest="step")
    assert found.values.tolist() == [["a", 1, 2.0, 1], ["a", 2, 0.0, 1], ["b", 1, 1.0, 1]]


def test_nothing_recorded_is_an_empty_table() -> None:
    found = made(pd.DataFrame({"arm": ["a"]}), kind="averages", by=["arm"], metrics=["norm"])
    assert found.empty
    assert list(found.columns) == ["arm", "norm", "rows"]


def test_two_columns_of_lists_are_refused() -> None:
    with pytest.raises(ConfigError, match="metrics values, more hold lists; allowed: one such column"):
        made(ROWS.assign(more=ROWS["values"]), kind="averages", by=["arm"], metrics=["values", "more"])


def test_what_no_run_decides_is_impossible_with_its_reason() -> None:
    context: Any = None
    found = unmeasurable(context, UnmeasurableClaim(check="unmeasurable", reason="praise"), None)
    assert (found.verdict, found.cause) == ("impossible", "praise")
