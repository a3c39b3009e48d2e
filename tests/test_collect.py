"""One row per run: what is missing, failed or diverged is a row that says so."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from lowrank.collect import collect
from lowrank.files import write_json

PLAN: dict[str, Any] = {
    "studies": {
        "s": {"runs": [{"arm": "lora", "run": name, "lr": 1e-3} for name in ("ok", "late", "gone", "bad", "inf")]}
    },
    "runs": {
        name: {"pack": "p", "shown": {"model_title": "M"}, "extended": False}
        for name in ("ok", "late", "gone", "bad", "inf")
    },
    "packs": {"p": {"evaluations": {"test-1": "d"}}},
    "evaluations": {
        "test-1": {"labels": {"s": "test"}, "metrics": ["loss", "accuracy", "perplexity"]},
        "test-2": {"labels": {"other": "test"}, "metrics": ["loss"]},
    },
}


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, dict[str, Any]]:
    def manifest(run: str, status: str, cause: str | None, **metrics: Any) -> None:
        provenance = {"device": {"gpu": None, "cpu_model": "CPU"}, "commit": "c"}
        facts = {"status": status, "cause": cause, "metrics": metrics, "provenance": provenance}
        write_json(tmp_path / "runs" / run / "manifest.json", facts)

    def scored(run: str, status: str, cause: str | None, **metrics: Any) -> None:
        record = {"status": status, "cause": cause, "metrics": metrics}
        write_json(tmp_path / "runs" / run / "eval" / "test-1.json", record)

    manifest("ok", "ok", None, best_val_loss=0.5)
    scored("ok", "ok", None, loss=0.4, accuracy=0.9, perplexity=None, units=10)
    manifest("late", "ok", None, best_val_loss=0.6)
    manifest("bad", "diverged", "the loss was not finite at step 3", best_val_loss=None)
    scored("bad", "diverged", "the loss was not finite at step 3")
    manifest("inf", "ok", None, best_val_loss=0.7)
    scored("inf", "diverged", "the loss on the test split is not finite")
    found = collect(PLAN, "s", tmp_path / "runs.csv", tmp_path / "runs")
    return {row["run"]: row for row in found}


def test_every_run_is_a_row_with_its_status(rows: dict[str, dict[str, Any]]) -> None:
    assert {name: row["status"] for name, row in rows.items()} == {
        "ok": "ok",
        "late": "failed",
        "gone": "missing",
        "bad": "diverged",
        "inf": "diverged",
    }
    causes = {name: row["cause"] for name, row in rows.items()}
    assert causes["ok"] == ""
    assert causes["late"].startswith("not scored: ")
    assert causes["gone"].startswith("not trained: ")
    assert causes["bad"] == "the loss was not finite at step 3"
    assert causes["inf"] == "the loss on the test split is not finite"


def test_metrics_of_training_and_scoring_stand_side_by_side(rows: dict[str, dict[str, Any]]) -> None:
    row = rows["ok"]
    assert (row["best_val_loss"], row["test_accuracy"], row["test_perplexity"], row["lr"]) == (0.5, 0.9, None, 1e-3)
    assert (row["device"], row["model_title"]) == ("CPU", "M")


def test_several_devices_of_one_run_are_counted(tmp_path: Path) -> None:
    provenance = {"device": {"gpu": "G"}, "commit": "c", "processes": 4}
    facts = {"status": "ok", "cause": None, "metrics": {}, "provenance": provenance}
    write_json(tmp_path / "runs" / "ok" / "manifest.json", facts)
    devices = {row["run"]: row.get("device") for row in collect(PLAN, "s", tmp_path / "runs.csv", tmp_path / "runs")}
    assert devices["ok"] == "4 x G"


def test_the_file_has_every_column_and_blanks_where_nothing_is(rows: dict[str, Any], tmp_path: Path) -> None:
    with (tmp_path / "runs.csv").open() as file:
        written = {row["run"]: row for row in csv.DictReader(file)}
    assert len(written) == 5
    assert written["gone"]["test_accuracy"] == written["ok"]["test_perplexity"] == ""
    assert written["ok"]["test_accuracy"] == "0.9"


def test_a_run_of_extended_is_a_row_once_it_is_there(tmp_path: Path) -> None:
    runs = {**PLAN["runs"], "gone": {**PLAN["runs"]["gone"], "extended": True}}
    plan = {**PLAN, "runs": runs}
    assert "gone" not in {row["run"] for row in collect(plan, "s", tmp_path / "runs.csv", tmp_path / "runs")}
    facts = {"status": "ok", "cause": None, "metrics": {}, "provenance": {"device": {"gpu": "G"}, "commit": "c"}}
    write_json(tmp_path / "runs" / "gone" / "manifest.json", facts)
    assert "gone" in {row["run"] for row in collect(plan, "s", tmp_path / "runs.csv", tmp_path / "runs")}
