"""The published numbers of each study: none lost, and each answered by a live cell or claim."""

import pytest

from lowrank.errors import ConfigError
from lowrank.report.kinds import CellRef
from lowrank.report.ledger import Ledger
from lowrank.report.opened import open_study
from lowrank.report.verdicts import find_row, published
from lowrank.report.views import parse_views
from lowrank.strict import parse
from lowrank.study import STUDIES
from lowrank.yaml_files import read_yaml
from tests.ledger_checks import check_answers, check_claims, check_counts
from tests.report_runs import make_runs, write_runs

# Counted in the document and its figures, not in the ledger.
COUNTS = {
    "004-F1": 5 * 5 + 5,
    "004-F2": 5 * 5,
    "004-F3L": 18 + 1,
    "004-F3R": 18,
    "004-S": 3 + 5 + 4,
    "004-O": 3,
    "004-C0": 1,
    "004-C1": 2,
    "004-C2": 2,
    "004-C3": 1,
    "004-C4": 2,
    "004-C5": 2,
    "004-C6": 2,
    "004-C7": 1,
    "004-C8": 1,
    "004-C9": 3,
    "004-K": 1,
}


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reported")
    views = parse_views(read_yaml(STUDIES / "lr_ratio.yaml"), "lr_ratio")
    return open_study("lr_ratio", views, write_runs(make_runs(), folder), folder, "paper")


def test_no_published_number_is_lost_or_unanswered(context):
    check_counts("lr_ratio", COUNTS)
    check_answers(context, 133)
    check_claims(context)


def test_a_cell_that_is_not_there_is_found_out(context):
    gone = CellRef(table="fig1", row={"arm": "lora", "rank": 9, "lr": 1e-4}, column="best_val_loss")
    assert find_row(context.table("fig1"), gone) is None
    with pytest.raises(ConfigError, match="unknown column 'rnak'"):
        find_row(context.table("fig1"), gone.model_copy(update={"row": {"rnak": 8}}))


ENTRY = {"id": "a", "line": 1, "kind": "numeric", "value": 1.0, "tolerance": 0.1}
CELL = {"table": "t", "row": {}, "column": "c"}


@pytest.mark.parametrize(
    ("entries", "count", "message"),
    [
        ([{**ENTRY, "cell": CELL}], 2, "1 entries, count says 2"),
        ([{**ENTRY, "cell": CELL}, {**ENTRY, "cell": CELL}], 2, "stands twice"),
        ([ENTRY], 1, "one of `cell` and `claim` answers"),
        ([{**ENTRY, "cell": CELL, "factor": 2}], 1, "one of `tolerance`, `factor` and `among`"),
        ([{**ENTRY, "cell": CELL, "tolerence": 2}], 1, "unknown key 'tolerence'; did you mean 'tolerance'"),
    ],
)
def test_faulty_ledgers_are_refused(entries, count, message):
    raw = {
        "study": "s",
        "document": "s.md",
        "artefacts": [{"id": "004-X", "title": "t", "count": count, "entries": entries}],
    }
    with pytest.raises(ConfigError, match=message):
        parse(Ledger, raw, "ledger")


def test_published_values_read_as_printed():
    assert published(0.26, 0.003) == "0.260 ± 0.003"
    assert published(0.2655, 0.003) == "0.2655 ± 0.003"
    assert published((0.316, 0.325), 0.003) == "0.316 to 0.325"
    assert [published(value, 0.0) for value in (1e-4, 0.1989, 3.33, 128)] == ["1e-4", "0.1989", "3.33", "128"]
    assert published(None, 0.003) == "not shown"
