"""Views of a study: refused before anything is trained, and each kind has its function."""

import subprocess
import sys

import pytest

from lowrank.errors import ConfigError
from lowrank.report import build  # noqa: F401 - registers the kinds
from lowrank.report.context import CHECKS, FIGURES, TABLES
from lowrank.report.kinds import ClaimView, FigureView, TableView
from lowrank.report.views import kinds, parse_views
from lowrank.study import STUDIES
from lowrank.yaml_files import read_yaml

TABLE = {"kind": "summary", "title": "t", "note": "n", "by": ["lr"], "metrics": ["best_val_loss"]}
CELL = {"table": "t", "row": {"lr": 1}, "column": "best_val_loss"}
SUM = {"kind": "arithmetic", "title": "t", "note": "n"}
SUM |= {"rows": [{"label": "twice", "formula": "2 * x", "values": {"x": CELL}}]}
FIGURE = {"kind": "lines", "table": "t", "title": "t", "caption": "c", "x": "lr", "y": "best_val_loss"}
FIGURE |= {"x_label": "x", "y_label": "y", "series": ["arm"]}


@pytest.mark.parametrize(
    ("base", "key", "functions"),
    [(TableView, "kind", TABLES), (FigureView, "kind", FIGURES), (ClaimView, "check", CHECKS)],
)
def test_every_kind_has_a_function(base, key, functions):
    assert sorted(kinds(base, key)) == sorted(functions)


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_views_of_every_study_are_valid(path):
    views = parse_views(read_yaml(path), path.stem)
    assert len(views.outputs()) == len(set(views.outputs()))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            {"tables": {"t": {**TABLE, "kind": "sumary"}}},
            "tables.t.kind: unknown kind 'sumary'; did you mean 'summary'",
        ),
        ({"tables": {"t": {**TABLE, "metric": "x"}}}, "tables.t: metric: unknown key 'metric'; did you mean 'metrics'"),
        ({"tables": {"../t": TABLE}}, "is not a name"),
        ({"tables": {"t": {**TABLE, "where": {"alpha": {"abvoe": 1}}}}}, "abvoe"),
        ({"figures": {"f": FIGURE}}, "f: table: unknown table 't'"),
        ({"claims": {"c": {"check": "rato"}}}, "claims.c.check: unknown check 'rato'; did you mean 'ratio'"),
        (
            {"tables": {"t": TABLE}, "claims": {"c": {"check": "tied", "table": "t", "margin": 0.01}}},
            "c: table: 't' is no table of optima",
        ),
        (
            {"tables": {"a": SUM, "t": TABLE}},
            "tables.a: 't' is no table that stands before it",
        ),
    ],
)
def test_faults_are_named(raw, message):
    with pytest.raises(ConfigError) as caught:
        parse_views(raw, "study")
    assert message in str(caught.value)


def test_no_views_is_allowed():
    assert parse_views({"tables": None}, "study").outputs() == ["runs.csv", "claims.json"]


def test_validating_views_imports_nothing_heavy():
    heavy = ("pandas", "matplotlib", "torch", "scipy")
    code = f"import sys, lowrank.report.views; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
