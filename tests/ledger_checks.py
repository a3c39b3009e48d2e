"""What holds of the published numbers of every study: none is lost, and a live cell or claim answers each."""

from __future__ import annotations

from collections.abc import Container, Mapping

import lowrank.report.build  # noqa: F401 - registers the kinds of tables, figures and checks
from lowrank.report.context import Context
from lowrank.report.kinds import Settings
from lowrank.report.ledger import load_ledger
from lowrank.report.verdicts import find_row


def check_counts(study: str, expected: Mapping[str, int]) -> None:
    """Each artefact has as many entries as were counted in the document, not in the ledger."""
    found = {artefact.id: len(artefact.entries) for artefact in load_ledger(study).artefacts}
    assert {name: found.get(name) for name in expected} == expected


def check_answers(
    context: Context,
    last_line: int,
    *,
    artefacts: Container[str] | None = None,
    without_rows: Container[str] = (),
) -> None:
    """Each entry names a line of the document, and a claim, or a row and column that are there.

    Args:
        context: the study with a row for each run that the paper's scale plans.
        last_line: of the document.
        artefacts: only these are looked at.
        without_rows: tables whose rows are made of what runs recorded.
    """
    for artefact, entry in context.ledger.entries():
        assert 1 <= entry.line <= last_line, entry.id
        if artefacts is not None and artefact.id not in artefacts:
            continue
        if entry.cell is None:
            assert entry.claim in context.views.claims, entry.id
            continue
        table = context.table(entry.cell.table)
        of_settings = isinstance(context.views.tables[entry.cell.table], Settings)
        assert entry.among == of_settings, f"{entry.id}: a setting holds by construction, and nothing else does"
        assert entry.cell.column in table, entry.id
        if entry.cell.table not in without_rows:
            assert find_row(table, entry.cell) is not None, f"{entry.id} points at no row"


def check_claims(context: Context) -> None:
    """Each claim of the study answers a sentence of the document."""
    assert {entry.claim for _, entry in context.ledger.entries() if entry.claim} == set(context.views.claims)
