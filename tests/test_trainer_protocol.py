"""The protocol that trains a run again under the Trainer finds our own loop's losses, and says when it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lowrank.evaluate.pack import evaluate_pack
from lowrank.files import read_json
from lowrank.run_folder import EVALUATIONS, RUNS
from lowrank.signals import StopFlag
from lowrank.spec import EvalSpec
from lowrank.train.pack import train_pack
from lowrank.trainer.protocols.hf_trainer import HfTrainer
from tests.training_lab import history, pack_of, prepared, run_spec

MERGING = ["full", {"part": "lora", "rank": 2}, {"part": "alpha_merge", "merge_every": 2}]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def under_the_trainer(**train: Any) -> tuple[str, dict[str, Any]]:
    spec = run_spec(MERGING, steps=5, **train)
    pack = pack_of(spec)
    train_pack(pack, StopFlag())
    run = pack.members[0].run
    asked = EvalSpec(protocol="hf_trainer", split="train")
    evaluate_pack([run], "n", asked, "code", prepared(spec), StopFlag())
    return run, read_json(RUNS / run / EVALUATIONS / "n.json")


def test_both_loops_agree_bit_for_bit_and_their_losses_are_the_runs() -> None:
    run, record = under_the_trainer(schedule="linear", clip_norm=1.0)
    rows, metrics = record["records"], record["metrics"]
    assert metrics["max_loss_difference"] == 0
    assert [row["loop"] for row in rows] == [row["trainer"] for row in rows]
    assert [row["trainer"] for row in rows] == [row["train_loss"] for row in history(run)]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert metrics["train_loss"] == pytest.approx(sum(row["trainer"] for row in rows) / 5, rel=1e-6)
    assert metrics["samples_per_s"] == pytest.approx(metrics["steps_per_s"] * 16)
    assert metrics["steps_per_s"] == pytest.approx(5 / metrics["train_time_s"])


def test_a_difference_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = HfTrainer._by_trainer

    def other(self: HfTrainer, subject: Any) -> Any:
        losses, facts = inner(self, subject)
        return [*losses[:3], losses[3] + 0.5, *losses[4:]], facts

    monkeypatch.setattr(HfTrainer, "_by_trainer", other)
    _, record = under_the_trainer()
    assert record["metrics"]["max_loss_difference"] == pytest.approx(0.5)


def test_a_run_that_ends_early_under_one_of_them_has_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HfTrainer, "_by_loop", lambda self, subject: [1.0, 1.0])
    _, record = under_the_trainer()
    assert (record["status"], record["cause"]) == ("diverged", "the loss was not finite at step 2")
