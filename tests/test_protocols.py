"""Protocols: found by name, told in one form, named in full, and asked of the runs that a study says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import f1_score

from lowrank import registry
from lowrank.errors import ConfigError
from lowrank.evaluate import pack as evaluate_pack
from lowrank.evaluate.protocol import Outcome, Protocol, Subject
from lowrank.evaluate.score import Score
from lowrank.planning import Planner
from lowrank.signals import StopFlag
from lowrank.spec import EvalSpec, eval_id
from lowrank.strict import PositiveInt, Strict, parse
from lowrank.train.pack import train_pack
from tests.training_lab import pack_of, prepared, run_spec


class CountOptions(Strict):
    times: PositiveInt = 1


class Count(Protocol):
    name = "count"
    Options = CountOptions
    metrics = ("trained",)

    def measure(self, subject: Subject) -> Outcome:
        trained = sum(p.numel() for p in subject.model.parameters() if p.requires_grad)
        return Outcome(metrics={"trained": trained * self.options.times}, records=[{"run": subject.run.seed}])


class Sloppy(Count):
    name = "sloppy"

    def measure(self, subject: Subject) -> Outcome:
        return Outcome(metrics={"other": 1})


@pytest.fixture
def _more(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"count": Count, "sloppy": Sloppy, **registry.protocols()}
    for place in ("lowrank.registry", "lowrank.evaluate.pack", "lowrank.planning"):
        monkeypatch.setattr(f"{place}.protocol", lambda name: known[name])


@pytest.mark.parametrize("name", list(registry.protocols()))
def test_a_protocol_says_what_it_gives(name: str) -> None:
    found = registry.protocol(name)
    assert found.metrics
    assert len(set(found.metrics)) == len(found.metrics)
    found()  # every option has a default, or the protocol could not be named alone
    assert found.__doc__
    assert found.measure is not Protocol.measure


def test_an_unknown_protocol_or_option_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown protocol 'scores'.*score"):
        parse(EvalSpec, {"protocol": "scores"}, "here")
    with pytest.raises(ConfigError, match="here: options: row: unknown key 'row'"):
        parse(EvalSpec, {"options": {"row": 3}}, "here")


@pytest.mark.usefixtures("_more")
def test_options_at_their_defaults_are_the_same_question() -> None:
    plain = eval_id(EvalSpec(protocol="count"), {})
    assert eval_id(EvalSpec(protocol="count", options={"times": 1}), {}) == plain
    assert eval_id(EvalSpec(protocol="count", options={"times": "2"}), {}) != plain
    assert eval_id(EvalSpec(), {}) == "test-0c2d2c3b"  # golden: a new field with a default keeps old ids


@pytest.mark.usefixtures("_more")
def test_what_a_protocol_finds_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = run_spec("lora", steps=1)
    pack = pack_of(spec)
    train_pack(pack, StopFlag())
    run = pack.members[0].run

    def scored(asked: EvalSpec) -> Any:
        evaluate_pack.evaluate_pack([run], "n", asked, "code", prepared(spec), StopFlag())
        return evaluate_pack.read_json(Path("results/runs") / run / "eval" / "n.json")

    record = scored(EvalSpec(protocol="count", options={"times": 2}))
    assert record["metrics"]["trained"] % 2 == 0
    assert record["records"] == [{"run": spec.seed}]
    Path("results/runs", run, "eval", "n.json").unlink()
    with pytest.raises(ConfigError, match="protocol sloppy: gave other; declared: trained"):
        scored(EvalSpec(protocol="sloppy"))


def test_an_evaluation_of_some_arms_is_asked_of_their_runs_alone() -> None:
    planner = Planner("smoke")
    specs = [run_spec("lora", steps=1, seed=seed) for seed in (0, 1)]
    runs = [planner.add_run(spec, "study", True) for spec in specs]
    planner.add_packs(
        "study", ["seed"], {"test": EvalSpec(), "few": EvalSpec(rows=2)}, size=9, mem_mb=0, only={"few": [runs[1]]}
    )
    asked = {
        run: {planner.evaluations[name]["labels"]["study"] for name in pack["evaluations"]}
        for pack in planner.packs.values()
        for run in pack["members"]
    }
    assert asked == {runs[0]: {"test"}, runs[1]: {"test", "few"}}


def test_two_studies_may_call_one_evaluation_by_two_names() -> None:
    planner = Planner("smoke")
    for owner in ("one", "other"):
        planner.add_run(run_spec("lora", steps=1), owner, True)
    for owner in ("one", "other"):
        planner.add_packs(owner, ["seed"], {owner: EvalSpec()}, size=9, mem_mb=0)
    (entry,) = planner.evaluations.values()
    assert entry["labels"] == {"one": "one", "other": "other"}


@pytest.mark.parametrize("seed", range(5))
def test_f1_is_the_macro_mean_over_classes(seed: int) -> None:
    drawn = torch.Generator().manual_seed(seed)
    predicted, labels = (torch.randint(0, 4, (30,), generator=drawn) for _ in range(2))
    found = Score(0.0, 0.0, 30, torch.empty(0), torch.empty(0), predicted, labels).f1
    assert found == pytest.approx(f1_score(labels, predicted, average="macro"))
