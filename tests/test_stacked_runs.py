"""Runs that are trained together: the results of each alone, through stops, kills, divergence and late comers."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank.errors import Preempted
from lowrank.files import check_seal
from lowrank.run_folder import RUNS
from lowrank.signals import StopFlag
from lowrank.spec import RunSpec
from lowrank.train import checkpoint, together
from lowrank.train import loop as loop_module
from lowrank.train import pack as pack_module
from lowrank.train.loop import Loop
from lowrank.train.pack import train_pack
from lowrank.train.stacked_loop import StackedLoop
from tests.child import in_child, signal_at
from tests.test_train_resume import StopAt, all_stopped_and_resumed, assert_same
from tests.tolerances import PACK_20_STEPS, PACK_50_STEPS
from tests.training_lab import history, manifest, member, pack_of, run_spec, weights

ALONE = Path("alone")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def specs(chain: Any = "lora", rates: tuple[float, ...] = (1e-3, 3e-4, 1e-4), **train: Any) -> list[RunSpec]:
    return [run_spec(chain, lr=lr, dropout=0, **train) for lr in rates]


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Members of each loop, for every step that is taken."""
    taken: list[int] = []
    inner = Loop.one_step
    monkeypatch.setattr(Loop, "one_step", lambda self, step: taken.append(len(self.states)) or inner(self, step))
    return taken


def train_alone(members: list[RunSpec]) -> None:
    for spec in members:
        train_pack(pack_of(spec, runs=ALONE, work=Path("work_alone")), StopFlag())


def assert_like_alone(found: list[RunSpec], tolerance: Any) -> None:
    for spec in found:
        run = member(spec).run
        ours, theirs = history(run), history(run, ALONE)
        assert [row["step"] for row in ours] == [row["step"] for row in theirs]
        for key in ("train_loss", "val_loss", "val_accuracy", "lr", "epoch"):
            pairs = [(row[key], other[key]) for row, other in zip(ours, theirs, strict=True)]
            assert [a is None for a, _ in pairs] == [b is None for _, b in pairs]
            given = torch.tensor([pair for pair in pairs if pair[0] is not None], dtype=torch.float64)
            tolerance.check(given[:, 0], given[:, 1])
        assert weights(run).keys() == weights(run, ALONE).keys()
        for name, tensor in weights(run, ALONE).items():
            tolerance.check(weights(run)[name], tensor)
        facts, other = manifest(run), manifest(run, ALONE)
        same = ("steps", "tokens", "parameters", "trainable_parameters")
        assert [facts["metrics"][key] for key in same] == [other["metrics"][key] for key in same]
        assert facts["files"].keys() == other["files"].keys()
        assert facts["status"] == other["status"]


@pytest.mark.parametrize("steps", [20, 50])
def test_the_same_answer_as_alone(steps: int, sizes: list[int]) -> None:
    found = [
        run_spec(
            [{"part": "lora", "rank": rank, "alpha": alpha}], lr=lr, dropout=0, steps=steps, eval_every=10, **train
        )
        for rank, alpha, lr, train in [
            (4, 8, 1e-3, {"weight_decay": 0.1, "clip_norm": 0.1}),
            (8, 16, 3e-4, {"schedule": "cosine", "warmup_steps": 3}),
            (8, 32, 1e-4, {}),
            (2, 4, 1e-3, {"clip_norm": 1.0}),
        ]
    ]
    train_pack(pack_of(*found), StopFlag())
    assert set(sizes) == {4}
    train_alone(found)
    assert_like_alone(found, PACK_20_STEPS if steps == 20 else PACK_50_STEPS)


@pytest.mark.parametrize(
    ("chain", "train"),
    [
        ([{"part": "hira", "rank": 4}], {}),
        (["nf4", {"part": "lora", "rank": 4}], {"batch_size": 12}),
        (["linear_probe"], {"batch_size": 5, "micro_batch_size": 2}),
        ([{"part": "lora", "bias": "all"}], {"micro_batch_size": 7}),
        ([{"part": "lora", "rank": 4}, {"part": "prune", "start": 2, "every": 3}], {"select": "best"}),
        ([{"part": "lora", "rank": 4}, {"part": "velora", "num_groups": 4}], {"batch_size": 7}),
        ([{"part": "lora", "rank": 4}, "lean"], {}),
    ],
    ids=["hira", "qlora", "probe", "biases", "prune", "velora", "lean"],
)
def test_parts_and_batch_sizes(chain: Any, train: dict[str, Any], sizes: list[int]) -> None:
    """40 rows, so that the last batch of an epoch is a short one."""
    found = specs(chain, steps=20, **train)
    train_pack(pack_of(*found), StopFlag())
    assert set(sizes) == {3}
    train_alone(found)
    assert_like_alone(found, PACK_20_STEPS)


def test_a_member_that_diverges_is_frozen_and_marked() -> None:
    found = specs(rates=(1e-3, 1e30, 1e-4), steps=25, eval_every=10)
    train_pack(pack_of(*found), StopFlag())
    train_alone(found)
    bad = member(found[1]).run
    assert manifest(bad)["status"] == manifest(bad, ALONE)["status"] == "diverged"
    assert history(bad) == history(bad, ALONE)
    assert_like_alone([found[0], found[2]], PACK_50_STEPS)


def test_what_is_written_of_a_member(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a run alone, and of each step that it took together an equal share of the seconds."""
    clock = itertools.count()  # each look is a second later, so a step takes one
    monkeypatch.setattr(loop_module.time, "perf_counter", lambda: float(next(clock)))
    found = specs(rates=(1e-3, 1e30, 1e-4), steps=25, eval_every=25)
    train_pack(pack_of(*found), StopFlag())
    told = [check_seal(RUNS / member(spec).run)["metrics"] for spec in found]
    assert [facts["trained_together"] for facts in told] == [3, 3, 3]
    # 20 steps until a loss that is not finite is seen, then 5 that two share.
    assert [facts["train_time_s"] for facts in told] == [round(20 / 3 + 5 / 2, 3), round(20 / 3, 3), 9.167]
    assert not any(Path("work").iterdir())


def test_a_member_that_comes_later_is_trained_alone(sizes: list[int]) -> None:
    found = specs(steps=2)
    train_pack(pack_of(*found[:2]), StopFlag())
    train_pack(pack_of(*found), StopFlag())
    assert sizes == [2, 2, 1, 1]


def test_what_cannot_be_stacked_is_trained_one_after_another(sizes: list[int]) -> None:
    train_pack(pack_of(*specs([{"part": "lora", "dropout": 0.1}], steps=1), *specs("full", steps=1)), StopFlag())
    assert sizes == [1] * 6


@pytest.mark.parametrize("step", [0, 3])
def test_a_resumed_stack_is_bit_equal(step: int) -> None:
    found = specs([{"part": "lora", "rank": 4}, {"part": "prune", "start": 2, "every": 3}], clip_norm=1.0)
    train_pack(pack_of(*found), StopFlag())
    for run in all_stopped_and_resumed(found, step):
        assert_same(run)


def test_a_member_goes_on_in_other_company() -> None:
    """Its checkpoint is that of a run alone."""
    found = specs(steps=12, eval_every=6)
    train_alone(found)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Preempted):
        train_pack(pack_of(*found), StopAt(5, patch))
    for spec in found:
        train_pack(pack_of(spec), StopFlag())
    assert_like_alone(found, PACK_20_STEPS)


KILLED = {
    "in a step": (StackedLoop, "update", 4),
    "between the saves of two members": (checkpoint, "seal", 8),
    "when the first is written": (pack_module, "write_events", 1),
    "when the second is there": (pack_module, "announce", 2),
}


@pytest.mark.parametrize(("owner", "name", "call"), KILLED.values(), ids=KILLED.keys())
def test_killed(owner: Any, name: str, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_module, "CHECKPOINT_EVERY_S", 0.0)
    found = specs(clip_norm=1.0)
    train_pack(pack_of(*found), StopFlag())
    again = pack_of(*found, runs=Path("second"), work=Path("work2"))

    def killed() -> None:
        signal_at(owner, name, signal.SIGKILL, call=call)()
        train_pack(again, StopFlag())

    assert in_child(killed) == -signal.SIGKILL
    done = {path.name: path.stat().st_mtime_ns for path in Path("second").glob("*")}
    assert in_child(lambda: train_pack(again, StopFlag())) == 0
    for one in again.members:
        assert_same(one.run)
    after = {path.name: path.stat().st_mtime_ns for path in Path("second").glob("*")}
    assert after.keys() == {one.run for one in again.members}
    assert all(after[run] == when for run, when in done.items() if run in after), "a finished member was trained again"


def test_asked_to_stop(capsys: pytest.CaptureFixture[str]) -> None:
    found = specs()
    pack = pack_of(*found)

    def asked() -> None:
        signal_at(StackedLoop, "update", signal.SIGTERM, call=3)()
        train_pack(pack, StopFlag().install())

    assert in_child(asked) == 70  # the exception; the command turns it into 75
    states = [checkpoint.load_newest(one.checkpoints(Path("work")), one.facts) for one in pack.members]
    assert [state["loop"]["step"] for state in states if state] == [3, 3, 3]
    train_pack(pack, StopFlag())
    assert capsys.readouterr().err.count("goes on from step 3") == 3
    assert together.resumed(pack.members, Path("work"))[0][1] == [None, None, None]
