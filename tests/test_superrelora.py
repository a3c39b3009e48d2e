"""The study superrelora: every published number is an entry, and each entry points at a live cell or claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lowrank.collect import collect
from lowrank.planning import make_plan
from lowrank.report.opened import open_study
from lowrank.report.verdicts import decide
from lowrank.report.views import parse_views
from lowrank.study import STUDIES
from lowrank.yaml_files import read_yaml
from tests.ledger_checks import check_answers, check_claims, check_counts

# Counted in the document, its logs and its figures, not in the ledger.
COUNTS = {
    "000-T1": 3 * 3,
    "000-L": 3 + 4 + 4,
    "000-T2": 2 * 4,
    "000-F1": 17,
    "000-F2": 17,
    "000-F3": 3,
    "000-C1": 2 + 1 + 6 + 2,
    "000-S": 12 + 1 + 2,
}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The study at paper scale, with every run missing."""
    folder: Path = tmp_path_factory.mktemp("superrelora")
    plan = make_plan("paper", ["superrelora"])
    collect(plan, "superrelora", folder / "runs.csv", folder)
    views = parse_views(read_yaml(STUDIES / "superrelora.yaml"), "superrelora")
    return open_study("superrelora", views, folder / "runs.csv", folder, "paper", runs=folder)


def test_no_published_number_is_lost_or_unanswered(context: Any) -> None:
    check_counts("superrelora", COUNTS)
    check_answers(context, 145, without_rows=("logged",))  # its rows are the steps that runs have reached
    check_claims(context)


def test_the_arithmetic_of_the_published_logs_is_judged_at_every_scale(context: Any) -> None:
    found = {
        entry.id: decide(context, artefact, entry)["verdict"]
        for artefact, entry in context.ledger.entries()
        if entry.cell is not None and entry.cell.table == "logs"
    }
    differs = {"S-length", "S-table-batch"}  # the trained models were evaluated on 128 tokens in batches of 8
    assert {name for name, verdict in found.items() if verdict == "differs"} == differs
    assert all(verdict == "reproduced" for name, verdict in found.items() if name not in differs)
