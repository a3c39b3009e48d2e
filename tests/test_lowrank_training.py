"""The study lowrank_training, GPT and GaLore: every published number answered, exact counts, impossible claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lowrank.report.context import Context
from lowrank.report.opened import open_study
from lowrank.report.verdicts import decide
from lowrank.report.views import parse_views
from lowrank.study import STUDIES, load_study, points
from lowrank.yaml_files import read_yaml
from tests.ledger_checks import check_answers, check_counts

STUDY = "lowrank_training"

# Counted in the report's tables and figures, not in the ledger.
COUNTS = {
    "002-C1": 2,
    "002-T1": 3 * 4 + 4 + 4,
    "002-F5": 1 + 2,
    "002-F6": 5 + 5,
    "002-F7": 1 + 7 * 3 + 1,
    "002-P": 1,
    "002-F8": 2 + 1,
    "002-G2": 5 * 4,
    "002-C3": 2,
}

METRICS = ("last_val_loss", "test_loss", "test_perplexity", "trainable_parameters", "train_time_s", "cost_step_time_s")
COST = ("parameter_bytes", "gradient_bytes", "optimizer_bytes", "saved_activation_bytes", "peak_memory_bytes")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """The study at paper scale over made-up results: one row for each run that it would train."""
    folder: Path = tmp_path_factory.mktemp("study")
    rows: list[dict[str, Any]] = []
    for number, point in enumerate(points(load_study(STUDY), "paper")):
        card = point.spec.model.card
        title = read_yaml(Path("resources/cards/models") / f"{card}.yaml")["title"]
        row = {"arm": point.arm, "run": f"run-{number}", "status": "ok", "cause": "", "model_title": title}
        row |= {**point.axes, "epochs": point.spec.train.epochs}
        rows.append(row | dict.fromkeys([*METRICS, *(f"cost_{name}" for name in COST)], 1.0 + number / 1000))
    pd.DataFrame(rows).to_csv(folder / "runs.csv", index=False)
    views = parse_views(read_yaml(STUDIES / f"{STUDY}.yaml"), STUDY)
    return open_study(STUDY, views, folder / "runs.csv", folder, "paper")


def test_no_published_number_is_lost_or_unanswered(context: Context) -> None:
    check_counts(STUDY, COUNTS)
    check_answers(context, 40, artefacts=COUNTS)  # not the vision transformers'


def test_the_larger_columns_of_galores_table_are_trained_by_extended_alone() -> None:
    cards: dict[bool, set[str]] = {True: set(), False: set()}
    for point in points(load_study(STUDY), "paper"):
        cards[point.extended].add(point.spec.model.card)
    assert cards[True] == {"llama_350m", "llama_1b"}
    assert not cards[True] & cards[False]


def records(context: Context, *artefacts: str) -> dict[str, dict[str, Any]]:
    """The record of each entry of some artefacts, by id."""
    pairs = [(found, entry) for found in map(context.ledger.artefact, artefacts) for entry in found.entries]
    return {entry.id: decide(context, found, entry) for found, entry in pairs if entry.cell}


def test_the_counts_are_the_documents(context: Context) -> None:
    found = records(context, "002-F6", "002-F7")
    for name in ("none", "h1-r4", "h1-r64", "h4-r4", "h4-r64"):
        assert found[f"F6-{name}"]["verdict"] == "reproduced", name
    counts = context.table("gpt_parameters").set_index("label")["trainable_parameters"]
    assert counts["W/o LoRA"] == 124_082_688
    assert counts["AL H4 R1"] == 96_159_744
    assert found["F7-AL-r1-parameters"]["verdict"] == "differs"


def test_what_cannot_be_is_called_impossible(context: Context) -> None:
    found = records(context, "002-P", "002-F8")
    assert found["P-24"]["verdict"] == "impossible"
    assert found["P-24"]["cause"] == "at most 22.8464 is possible"
    assert {found["F8-adam"]["verdict"], found["F8-galore"]["verdict"]} == {"impossible"}
    assert found["F8-30"]["verdict"] == "differs"


def test_a_bound_that_holds_leaves_the_verdict_alone(context: Context) -> None:
    artefact = context.ledger.artefact("002-P")
    (entry,) = artefact.entries
    for value, verdict in ((22.3, "reproduced"), (10.0, "differs"), (23.2, "differs"), (23.4, "impossible")):
        changed = entry.model_copy(update={"value": value})
        assert decide(context, artefact, changed)["verdict"] == verdict, value
