"""The published numbers of `peft_comparison`: counted by hand, each answered by a live cell or claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lowrank.cards import data_card, model_card
from lowrank.collect import shown
from lowrank.registry import protocol
from lowrank.report.context import Context
from lowrank.report.opened import open_study
from lowrank.report.verdicts import decide
from lowrank.report.views import parse_views
from lowrank.study import STUDIES, load_study, points
from lowrank.train.history import write_history
from lowrank.yaml_files import read_yaml
from tests.ledger_checks import check_answers, check_claims, check_counts

STUDY = "peft_comparison"

# Counted in the document and in its repository's results, not in the ledger.
COUNTS = {
    "001-N1": 3,  # how many, which share, the rank
    "001-N2": 2,
    "001-N3": 3,  # parameters, a whole step, and on the other base
    "001-N4": 4,  # how many, which share, and two readings of 2.9 million
    "001-T1": 3,
    "001-T2": 4 * 5,
    "001-T3": 4 * 5 + 1 + 4,  # two accuracies, perplexity, minutes and counts of four methods; where they come from
    "001-C": 33,
}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """The study at paper scale, every run made up."""
    folder = tmp_path_factory.mktemp("peft")
    study = load_study(STUDY)
    rows = []
    for number, point in enumerate(points(study, "paper")):
        rng = np.random.default_rng(number)
        run, spec = f"run-{number}", point.spec
        titles = model_card(spec.model.card).title, data_card(spec.data.card).title
        row: dict[str, Any] = {"arm": point.arm, "run": run, "pack": "p", "status": "ok", "cause": "", **point.axes}
        row |= {"seed": spec.seed, **shown(spec, *titles), "device": "cpu"}
        for name in ("best_val_loss", "last_train_loss", "mean_train_loss", "train_time_s", "trainable_parameters"):
            row[name] = 1 + rng.random()
        for label, asked in study.evaluations.items():
            if not asked.arms or point.arm in asked.arms:
                row |= {f"{label}_{name}": rng.random() for name in protocol(asked.protocol).metrics if name != "clock"}
        rows.append({key: value for key, value in row.items() if not isinstance(value, list)})
        (folder / "runs" / run).mkdir(parents=True)
        write_history(folder / "runs" / run / "history.parquet", [{"step": 1, "epoch": 1.0, "train_loss": 1.0}])
    pd.DataFrame(rows).to_csv(folder / "runs.csv", index=False)
    views = parse_views(read_yaml(STUDIES / f"{STUDY}.yaml"), STUDY)
    return open_study(STUDY, views, folder / "runs.csv", folder, "paper", runs=folder / "runs")


def test_no_published_number_is_lost_or_unanswered(context: Context) -> None:
    check_counts(STUDY, COUNTS)
    check_answers(context, 357)
    check_claims(context)
    for artefact, entry in context.ledger.entries():
        verdict = decide(context, artefact, entry)
        assert verdict["verdict"] not in ("not run", "not comparable"), f"{entry.id}: {verdict['cause']}"


def test_what_is_exact_is_exact(context: Context) -> None:
    """Counts that were made by hand, or by the document's own scripts."""
    counts = context.table("counts").set_index("label")["trainable_parameters"]
    assert counts["LoRA r 8"] == 12 * 8 * (768 + 768) + 768 * 768 + 768 + 2 * 768 + 2 == 739_586
    assert counts["LoRA r 32, the document's HiRA"] == 1_181_954 == counts["HiRA r 32 on q, v"]
    assert counts["HiRA r 32 on its paper's targets"] == 2_951_426 == counts["LoRA r 128 on q and v"]
    assert counts["LoRA r 64 on q, k, v and out"] == 2_951_426
    assert counts["QLoRA as published"] == 443_906
    arithmetic = context.table("arithmetic").set_index("label")
    assert arithmetic["value"]["LoRA share (%)"] == pytest.approx(100 * 739_586 / 67_694_596)
    assert arithmetic["value"]["HiRA share as run (%)"] == pytest.approx(1.7347, abs=1e-4)
    memory = context.table("memory_65b").set_index("label")["value"]
    assert memory["Full fine-tuning (GB)"] == pytest.approx(65.285660672 * 12)
    assert memory["QLoRA 4-bit (GB)"] < 48 < memory["LoRA 16-bit (GB)"] < 320


def test_figures_can_be_drawn(context: Context, tmp_path: Path) -> None:
    for name in context.views.figures:
        context.draw(name).savefig(tmp_path / f"{name}.png")
