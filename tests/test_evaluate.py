"""Scoring: over all units once, whatever the batches; under several protocols; where no weights are kept."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank import jobs, plan
from lowrank.collect import collect
from lowrank.data.loader import open_splits
from lowrank.errors import IntegrityError, Preempted
from lowrank.evaluate.pack import evaluate_pack, restore
from lowrank.evaluate.score import rows_at_a_time, score
from lowrank.files import check_seal, read_json
from lowrank.models.load import load_model
from lowrank.planning import Planner
from lowrank.run_folder import RUNS
from lowrank.signals import StopFlag
from lowrank.spec import EvalSpec
from lowrank.tasks import task
from lowrank.train.loop import Loop
from lowrank.train.pack import train_pack
from tests.training_lab import DATA, history, manifest, pack_of, prepared, run_spec

LORA = run_spec("lora", steps=3)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def trained() -> str:
    pack = pack_of(LORA)
    train_pack(pack, StopFlag())
    return pack.members[0].run


def evaluate(run: str, spec: EvalSpec, name: str = "test-0", code: str = "code") -> dict[str, Any]:
    evaluate_pack([run], name, spec, code, prepared(LORA), StopFlag())
    found: dict[str, Any] = read_json(RUNS / run / "eval" / f"{name}.json")
    return found


@pytest.mark.parametrize("name", ["classification", "causal_lm"])
def test_batches_do_not_change_a_score(name: str) -> None:
    """Perplexity is exp(sum of token losses / tokens): a mean of batch means would move with the batches."""
    batches = open_splits(prepared(LORA), LORA.data, name)["validation"]
    model = load_model(LORA.model, name, 4, 0).double()
    scores = [score(model, task(name), batches, size, torch.device("cpu")) for size in (1, 3, 16)]
    tokens = int((batches.split.lengths.clamp(max=16) - 1).sum())
    for found in scores:
        assert found.units == (batches.rows if name == "classification" else tokens) == len(found.losses)
        assert found.perplexity == pytest.approx(math.exp(found.losses.double().mean().item()))
        torch.testing.assert_close(found.losses, scores[0].losses, rtol=1e-5, atol=1e-6)


def test_the_weights_that_training_left_are_scored(trained: str) -> None:
    last = history(trained)[-1]
    record = evaluate(trained, EvalSpec(split="validation"))
    assert record["metrics"]["loss"] == pytest.approx(last["val_loss"], rel=1e-6)
    assert record["metrics"]["accuracy"] == pytest.approx(last["val_accuracy"])
    assert record["weights"] == manifest(trained)["files"]["weights.safetensors"]
    assert len(record["items"]["loss"]) == record["metrics"]["units"] == 16


def test_two_protocols_of_one_run(trained: str) -> None:
    plain, merged = evaluate(trained, EvalSpec(), "a"), evaluate(trained, EvalSpec(merged=True), "b")
    assert plain["metrics"]["loss"] == pytest.approx(merged["metrics"]["loss"], rel=1e-5)
    fewer = evaluate(trained, EvalSpec(rows=5), "c")
    assert fewer["metrics"]["units"] == 5
    assert fewer["items"]["loss"] == plain["items"]["loss"][:5]
    check_seal(RUNS / trained)


def test_a_valid_score_stays_and_another_code_scores_again(trained: str, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate(trained, EvalSpec())
    asked: list[str] = []
    monkeypatch.setattr("lowrank.evaluate.pack.restore", lambda run, *rest: asked.append(run) or restore(run, *rest))
    evaluate(trained, EvalSpec())
    assert asked == []
    evaluate(trained, EvalSpec(), code="newer")
    assert asked == [trained]


def test_damaged_weights_are_not_scored(trained: str) -> None:
    file = RUNS / trained / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(IntegrityError, match=r"weights\.safetensors: sha256 is"):
        evaluate(trained, EvalSpec())


def test_a_stop_is_polled_before_each_batch(trained: str) -> None:
    stop = StopFlag()
    stop.received = "SIGTERM"
    with pytest.raises(Preempted, match="runs that are scored stay so"):
        evaluate_pack([trained], "test-0", EvalSpec(), "code", prepared(LORA), stop)
    assert not (RUNS / trained / "eval").exists()


def test_a_loss_that_is_not_finite_is_a_result(trained: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run: str, *rest: Any) -> Any:
        model, *others = restore(run, *rest)
        next(model.parameters()).data.fill_(math.inf)
        return model, *others

    monkeypatch.setattr("lowrank.evaluate.pack.restore", broken)
    record = evaluate(trained, EvalSpec())
    assert (record["status"], record["metrics"]) == ("diverged", {})
    assert record["cause"] == "the loss on the test split is not finite"


def planned(monkeypatch: pytest.MonkeyPatch, *, keep_weights: bool, evaluations: dict[str, EvalSpec]) -> Planner:
    planner = Planner("smoke")
    run = planner.add_run(LORA, "study", keep_weights)
    planner.studies["study"] = {"runs": [{"arm": "lora", "run": run, "lr": 1e-2}]}
    planner.add_packs("study", ["lr"], evaluations, size=4, mem_mb=0)
    for card in planner.cards:
        jobs.fetch(card)
    for data in planner.data:
        jobs.prepare(planner.plan(), data)
    return planner


class TestWithoutWeights:
    EVALUATIONS = {"test": EvalSpec(), "merged": EvalSpec(merged=True), "few": EvalSpec(rows=4)}

    def test_it_is_scored_in_the_training_job_which_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        scores = []
        for keep in (False, True):
            made = planned(monkeypatch, keep_weights=keep, evaluations=self.EVALUATIONS).plan()
            (pack,) = made["packs"]
            (run,) = made["runs"]
            jobs.train(made, pack, 1)
            assert (RUNS / run / "weights.safetensors").exists() == keep
            for name in made["evaluations"] if keep else []:
                jobs.evaluate(made, pack, name, 1)
            records = {
                made["evaluations"][n]["labels"]["study"]: read_json(RUNS / run / "eval" / f"{n}.json")
                for n in made["evaluations"]
            }
            assert {record.get("evaluated_in") for record in records.values()} == {None if keep else "training"}
            scores.append({label: record["metrics"] for label, record in records.items()})
            (row,) = collect(made, "study", Path("runs.csv"))
            assert row["status"] == "ok"
            assert row["test_accuracy"] == scores[-1]["test"]["accuracy"]
            assert row["few_units"] == 4
        assert scores[0]["test"] == scores[1]["test"]
        assert scores[0]["few"] == scores[1]["few"]
        assert scores[0]["merged"]["loss"] == pytest.approx(scores[1]["merged"]["loss"], rel=1e-6)

    @pytest.mark.parametrize("keep", [False, True])
    def test_a_diverged_run_is_a_row_that_says_so(self, keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        made = planned(monkeypatch, keep_weights=keep, evaluations={"test": EvalSpec()}).plan()
        (pack,), (name,), (run,) = made["packs"], made["evaluations"], made["runs"]
        monkeypatch.setattr(Loop, "one_step", lambda self, step: torch.tensor(math.nan))
        jobs.train(made, pack, 1)
        if keep:
            jobs.evaluate(made, pack, name, 1)
        assert (
            read_json(RUNS / run / "eval" / f"{name}.json")["status"] == "diverged"
        )  # the workflow waits for this file
        (row,) = collect(made, "study", Path("runs.csv"))
        assert (row["status"], row["cause"]) == ("diverged", "the loss was not finite at step 1")
        assert row["test_accuracy"] is None


def test_an_evaluation_on_other_data(monkeypatch: pytest.MonkeyPatch) -> None:
    other = DATA.model_copy(update={"split_seed": 7, "test_rows": 9})
    made = planned(
        monkeypatch, keep_weights=True, evaluations={"test": EvalSpec(), "other": EvalSpec(data=other)}
    ).plan()
    (pack,) = made["packs"].values()
    assert len(made["data"]) == len(set(pack["evaluations"].values())) == 2
    jobs.train(made, pack["name"], 1)
    units = {}
    for name in pack["evaluations"]:
        jobs.evaluate(made, pack["name"], name, 1)
        record = read_json(RUNS / pack["members"][0] / "eval" / f"{name}.json")
        units[made["evaluations"][name]["labels"]["study"]] = record["metrics"]["units"]
    assert units == {"test": 16, "other": 9}


def test_the_plan_of_the_workflow_is_read_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = planned(monkeypatch, keep_weights=True, evaluations={"test": EvalSpec()}).plan()
    plan.write_plan(tmp_path / "plan.json", made)
    monkeypatch.setenv(plan.ENVIRONMENT, str(tmp_path / "plan.json"))
    assert plan.load_plan() == json.loads(json.dumps(made))


@pytest.mark.parametrize(
    ("name", "tokens", "vocabulary", "rows"),
    [
        ("causal_lm", 512, 50257, 10),
        ("masked_lm", 64, 30522, 128),
        ("causal_lm", 4096, 10**6, 1),
        ("classification", 512, 50257, 128),
    ],
)
def test_logits_never_fill_the_memory(name: str, tokens: int, vocabulary: int, rows: int) -> None:
    """A row of 512 tokens of GPT-2 gives out 103 MB; a classifier's row gives out its classes."""
    assert rows_at_a_time(task(name), 128, tokens, vocabulary) == rows
