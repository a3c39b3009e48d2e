"""Studies: every fault is named with its place before anything runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from lowrank import files, study
from lowrank.errors import ConfigError
from lowrank.planning import make_plan
from lowrank.spec import EvalSpec
from lowrank.study import SCALES, Point, load_study, points, studies

STUDY: dict[str, Any] = {
    "study": "mine",
    "title": "T",
    "document": "D",
    "source": "S",
    "question": "Q?",
    "protocol": ["one"],
    "pack": ["lr", "seed"],
    "arms": {
        "lora": {"title": "LoRA", "chain": "lora", "keep_weights": "none"},
        "qlora": {"title": "QLoRA", "chain": ["nf4", {"part": "lora", "rank": 4}], "set": {"weight_decay": 0.1}},
    },
    "evaluations": {"test": {"split": "test"}},
    "scales": {
        "smoke": {
            "minutes": 1,
            "base": {
                "task": "classification",
                "model": {"card": "smoke_bert"},
                "data": {"card": "smoke_topics", "train_rows": 32},
                "train": {"lr": "1e-3", "epochs": 1},
            },
            "sweeps": {
                "lora": [{"rank": [2, 4], "lr": [1e-3, "3e-3"], "seed": [0, 1]}, {"train.steps": 0, "epochs": None}],
                "qlora": [{"lr": 1e-2}],
            },
        }
    },
}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes the study, changed at a dotted place."""
    monkeypatch.setattr(study, "STUDIES", tmp_path)
    monkeypatch.setattr(study, "REPOSITORY", tmp_path)

    def write(place: str = "", value: Any = None) -> None:
        changed = copy.deepcopy(STUDY)
        if place:
            *path, last = place.split("/")
            inner: Any = changed
            for key in path:
                inner = inner[int(key) if isinstance(inner, list) else key]
            inner[int(last) if isinstance(inner, list) else last] = value
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(changed, sort_keys=False))

    return write


def all_points() -> list[Point]:
    return list(points(load_study("mine"), "smoke"))


def test_a_grid_is_the_product_of_its_axes(write: Any) -> None:
    write()
    found = all_points()
    assert len(found) == 8 + 1 + 1
    first = found[1]
    assert (first.arm, first.axes) == ("lora", {"rank": 2, "lr": 1e-3, "seed": 1})
    assert (first.spec.chain[0].rank, first.spec.train.lr, first.spec.seed) == (2, 1e-3, 1)  # type: ignore[attr-defined]
    assert found[2].spec.train.lr == 3e-3
    assert found[8].spec.train.steps == 0
    assert [options.part for options in found[9].spec.chain] == ["nf4", "lora"]
    assert (found[9].spec.train.weight_decay, found[0].spec.train.weight_decay) == (0.1, 0)


SWEEP = "scales/smoke/sweeps/lora/0"
FAULTS = {
    "unknown key": ("tittle", "T", r"mine\.yaml: tittle: unknown key 'tittle'; did you mean 'title'"),
    "other name": ("study", "yours", r"study: 'yours', but the file is called 'mine'"),
    "unknown scale": ("scales/smok", STUDY["scales"]["smoke"], "smok"),
    "unknown arm": ("scales/smoke/sweeps/lore", [], r"scales\.smoke\.sweeps: unknown arm 'lore'; did you mean 'lora'"),
    "unknown axis": (f"{SWEEP}/alhpa", 1, r"sweeps\.lora\.0: unknown axis 'alhpa'; did you mean 'alpha'"),
    "ambiguous axis": (f"{SWEEP}/dropout", 0.1, r"axis 'dropout' is ambiguous: lora\.dropout, model\.dropout"),
    "empty axis": (f"{SWEEP}/rank", [], r"sweeps\.lora\.0: rank: an empty list"),
    "value out of range": (f"{SWEEP}/lr", [-1], r"sweeps\.lora\.0: train\.lr: -1\.0 is out of range, allowed: > 0"),
    "nan": (f"{SWEEP}/lr", [".nan"], "train.lr: '.nan' is not a number"),
    "unknown packed axis": ("pack", ["lrr"], r"pack: unknown axis 'lrr'; did you mean 'lr'"),
    "unknown part": ("arms/lora/chain", "lorra", r"unknown part 'lorra'; did you mean 'lora'"),
    "entry without part": ("arms/lora/chain", [{"rank": 2}], r"arms\.lora: an entry of a chain is a part"),
    "no chain": ("arms/lora/chain", 3, "a chain is a list of parts"),
    "unknown option": ("arms/qlora/chain/1/rnk", 3, r"unknown key 'rnk'; did you mean 'rank'"),
    "unknown field": ("scales/smoke/base/train/epoch", 3, r"train\.epoch: unknown key 'epoch'; did you mean 'epochs'"),
    "two lengths": ("scales/smoke/base/train/steps", 3, "exactly one of epochs and steps"),
    "unknown protocol": ("evaluations/test/splitt", 3, r"unknown key 'splitt'; did you mean 'split'"),
    "no name": ("arms/a b", STUDY["arms"]["lora"], "is not a name"),
}


@pytest.mark.parametrize(("place", "value", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_refused(place: str, value: Any, message: str, write: Any) -> None:
    write(place, value)
    with pytest.raises(ConfigError, match=message):
        all_points()


PLAN_FAULTS = {
    "rank": (f"{SWEEP}/rank", [64], r"study mine: arm lora, rank 64, .*rank 64 is too large for 'bert"),
    "pattern": ("arms/qlora/chain/1/targets", ["no_such"], "no_such"),
    "card": ("scales/smoke/base/model/card", "smoke_brt", r"did you mean 'smoke_bert'"),
    "batch": ("arms/lora/chain", [{"part": "lte", "num_lora_heads": 3}], "batch_size 32 is no multiple of 3"),
    "twice": ("scales/smoke/sweeps/lora/1", {"rank": 2, "seed": 0}, "the arm has this run already"),
    "part twice": ("arms/qlora/chain", "lora+lora", "'lora' stands in it twice"),
}


@pytest.mark.parametrize(("place", "value", "message"), PLAN_FAULTS.values(), ids=PLAN_FAULTS.keys())
def test_a_chain_that_cannot_work_is_refused_before_anything_runs(
    place: str, value: Any, message: str, write: Any
) -> None:
    write(place, value)
    with pytest.raises(ConfigError, match=message):
        make_plan("smoke", ["mine"])


def test_an_unknown_study_is_named_with_the_nearest(write: Any) -> None:
    write()
    with pytest.raises(ConfigError, match="unknown study 'mien'; did you mean 'mine'"):
        load_study("mien")
    with pytest.raises(ConfigError, match="no scale 'paper'"):
        list(points(load_study("mine"), "paper"))


@pytest.mark.parametrize("name", studies())
@pytest.mark.parametrize("scale", SCALES)
def test_every_committed_study_has_runs_at_every_scale(name: str, scale: Any) -> None:
    assert len(list(points(load_study(name), scale))) > 0
    assert files.REPOSITORY in study.STUDIES.parents


def test_a_scale_may_change_the_size_of_an_evaluation(write: Any) -> None:
    write("scales/smoke/evaluations", {"test": {"rows": 2, "batch_size": 4}})
    found = study.evaluations(load_study("mine"), "smoke")
    assert found == {"test": EvalSpec(rows=2, batch_size=4)}
    (entry,) = make_plan("smoke", ["mine"])["evaluations"].values()
    assert entry["spec"] == {"rows": 2, "batch_size": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tset": {"rows": 2}}, "unknown evaluation 'tset'; did you mean 'test'?"),
        ({"test": {"rows": -1}}, "test: rows: -1 is out of range"),
        ({"test": {"options": {"rank": 1}}}, "test: options: rank: unknown key 'rank'"),
    ],
)
def test_a_change_of_an_evaluation_is_checked(write: Any, change: Any, message: str) -> None:
    write("scales/smoke/evaluations", change)
    with pytest.raises(ConfigError) as caught:
        load_study("mine")
    assert f"scales.smoke.evaluations{'.' if message.startswith('test') else ': '}{message}" in str(caught.value)
