"""Real signals: a process that is killed or asked to stop at any moment loses nothing but time."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from lowrank import cli, files, plan, run_folder
from lowrank.errors import LowrankError
from lowrank.signals import StopFlag
from lowrank.train import checkpoint, loop
from lowrank.train import pack as pack_module
from lowrank.train.loop import Loop
from lowrank.train.pack import train_pack
from tests.child import in_child, signal_at, signal_twice
from tests.planning_lab import plan_one
from tests.test_train_resume import assert_same
from tests.training_lab import manifest, pack_of, run_spec

SPEC = run_spec([{"part": "lora", "dropout": 0.2}])


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pack_module, "CHECKPOINT_EVERY_S", 0.0)  # a checkpoint after each step


KILLED = {
    "in a step, its gradient taken": (loop.nn.utils, "clip_grad_norm_", 4),
    "in a step, its weights moved": (Loop, "settle", 4),
    "in a save, before its tensors": (checkpoint, "write_tensors", 3),
    "in a save, before its manifest": (checkpoint, "seal", 3),
    "in a save, before its rename": (files, "_fsync", 17),
    "in a save, before the old one is removed": (checkpoint, "_folders", 4),
    "when the run is written": (pack_module, "write_events", 1),
    "before the run is sealed": (pack_module, "seal", 1),
    "when the run is there": (pack_module, "announce", 1),
}


@pytest.mark.parametrize(("owner", "name", "call"), KILLED.values(), ids=KILLED.keys())
def test_killed(owner: Any, name: str, call: int) -> None:
    spec = SPEC.model_copy(update={"train": SPEC.train.model_copy(update={"clip_norm": 1.0})})
    train_pack(pack_of(spec), StopFlag())
    pack = pack_of(spec, runs=Path("second"), work=Path("work2"))

    def killed() -> None:
        signal_at(owner, name, signal.SIGKILL, call=call)()
        train_pack(pack, StopFlag())

    assert in_child(killed) == -signal.SIGKILL
    assert in_child(lambda: train_pack(pack, StopFlag())) == 0
    assert_same(pack.members[0].run)
    assert [path.name for path in Path("second").iterdir()] == [pack.members[0].run]  # no half of a folder is left


def plan_of(monkeypatch: pytest.MonkeyPatch, *, keep_weights: bool = True) -> tuple[str, str]:
    """A plan of one run in the environment, as the workflow would name it; returns pack and run."""
    return plan_one(SPEC, monkeypatch, keep_weights=keep_weights)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_asked_to_stop_while_training(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    pack, run = plan_of(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["lowrank", "--log", "log", "train", pack])

    def asked() -> None:
        signal_at(Loop, "one_step", number, call=3)()
        cli.main()

    assert in_child(asked) == 75
    assert f"{number.name} received: {run} is saved at step 3 of 6; the same command goes on" in Path("log").read_text()
    assert not Path("results/runs").exists()
    assert in_child(cli.main) == 0
    assert f"{run}: goes on from step 3" in Path("log").read_text()
    assert manifest(run)["status"] == "ok"
    assert not Path("work", run).exists()


def test_asked_to_stop_while_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    pack, run = plan_of(monkeypatch)
    (evaluation,) = plan.load_plan()["evaluations"]
    monkeypatch.setattr(sys, "argv", ["lowrank", "train", pack])
    assert in_child(cli.main) == 0
    monkeypatch.setattr(sys, "argv", ["lowrank", "--log", "log", "evaluate", pack, evaluation])

    def asked() -> None:
        from lowrank.evaluate import pack as evaluate

        signal_at(evaluate, "restore", signal.SIGTERM, call=1)()
        cli.main()

    assert in_child(asked) == 75
    assert not Path("results/runs", run, "eval").exists()
    assert in_child(cli.main) == 0
    assert Path("results/runs", run, "eval", f"{evaluation}.json").is_file()


def test_asked_to_stop_while_scoring_in_the_training_job(monkeypatch: pytest.MonkeyPatch) -> None:
    pack, run = plan_of(monkeypatch, keep_weights=False)
    monkeypatch.setattr(sys, "argv", ["lowrank", "--log", "log", "train", pack])

    def asked() -> None:
        signal_at(pack_module, "write_events", signal.SIGTERM, call=1)()
        cli.main()

    assert in_child(asked) == 75
    assert not Path("results/runs", run).exists()
    assert in_child(cli.main) == 0
    assert manifest(run)["status"] == "ok"


def test_asked_to_stop_while_tokenising(monkeypatch: pytest.MonkeyPatch) -> None:
    plan_of(monkeypatch)
    (data,) = plan.load_plan()["data"]
    folder = Path("resources/prepared", data)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    monkeypatch.setattr(sys, "argv", ["lowrank", "--log", "log", "prepare", data])

    def asked() -> None:
        from lowrank.data import prepare

        signal_at(prepare, "_write_split", signal.SIGTERM, call=2)()
        cli.main()

    assert in_child(asked) == 75
    assert "nothing was written" in Path("log").read_text()
    assert list(Path("resources/prepared").iterdir()) == []
    assert in_child(cli.main) == 0
    assert folder.is_dir()


def test_asked_twice_while_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one arrives inside the save that the first one asked for."""
    pack, run = plan_of(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["lowrank", "--log", "log", "train", pack])
    monkeypatch.setattr(pack_module, "CHECKPOINT_EVERY_S", 1000.0)

    def asked() -> None:
        signal_twice(Loop, "one_step", checkpoint, "write_tensors", call=3)
        cli.main()

    assert in_child(asked) == 75
    assert f"{run} is saved at step 3 of 6" in Path("log").read_text()
    (saved,) = Path("work", run, "checkpoints").glob("step-*")
    files.check_seal(saved)
    assert in_child(cli.main) == 0
    assert f"{run}: goes on from step 3" in Path("log").read_text()


def test_asked_twice_while_tokenising(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one arrives while what was half written is cleared away."""
    plan_of(monkeypatch)
    (data,) = plan.load_plan()["data"]
    files.shutil.rmtree(Path("resources/prepared", data))
    monkeypatch.setattr(sys, "argv", ["lowrank", "--log", "log", "prepare", data])

    def asked() -> None:
        from lowrank.data import prepare

        signal_twice(prepare, "_write_split", files.shutil, "rmtree", call=2)
        cli.main()

    assert in_child(asked) == 75
    assert list(Path("resources/prepared").iterdir()) == []


def test_two_processes_do_not_train_one_run(capfd: pytest.CaptureFixture[str]) -> None:
    pack = pack_of(SPEC)
    run = pack.members[0].run
    with run_folder.holding(run):
        assert in_child(lambda: train_pack(pack, StopFlag())) == 70
        with pytest.raises(LowrankError, match=f"{run}: another process is training it"):
            run_folder.forget(run)
    train_pack(pack, StopFlag())
    assert manifest(run)["status"] == "ok"


def test_a_killed_process_lets_go_of_its_run() -> None:
    pack = pack_of(SPEC)

    def killed() -> None:
        signal_at(Loop, "one_step", signal.SIGKILL, call=2)()
        train_pack(pack, StopFlag())

    assert in_child(killed) == -signal.SIGKILL
    assert Path("work", pack.members[0].run, "lock").is_file()
    train_pack(pack, StopFlag())
