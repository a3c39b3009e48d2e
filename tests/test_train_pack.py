"""Packs: members one after another, each as if alone; what is finished is skipped, what is written is sealed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lowrank import files
from lowrank.errors import ConfigError, LowrankError, Preempted
from lowrank.files import check_seal
from lowrank.run_folder import RUNS, WEIGHTS, forget, read_spec
from lowrank.signals import StopFlag
from lowrank.train.history import read_history, write_history
from lowrank.train.loop import Loop
from lowrank.train.pack import Pack, train_pack
from lowrank.train.schedules import schedule
from tests.test_train_resume import StopAt, assert_same
from tests.training_lab import history, manifest, pack_of, run_spec

SPEC = run_spec("lora", steps=2)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that are taken."""
    taken: list[int] = []
    inner = Loop.one_step
    monkeypatch.setattr(Loop, "one_step", lambda self, step: taken.append(step) or inner(self, step))
    return taken


def test_a_run_holds_what_it_promises() -> None:
    pack = pack_of(SPEC)
    train_pack(pack, StopFlag())
    run = pack.members[0].run
    found = check_seal(RUNS / run)
    names = {"spec.json", "weights.safetensors", "history.parquet", "tensorboard/events.out.tfevents.0"}
    assert found["files"].keys() == names
    assert (found["run"], found["pack"], found["status"], found["code"]) == (run, "pack", "ok", "code")
    assert found["metrics"]["steps"] == 2
    assert found["metrics"]["tokens"] == 2 * 16 * 16
    assert found["metrics"]["trainable_parameters"] < found["metrics"]["parameters"]
    assert {"versions", "environment_lock", "commit", "device", "threads"} <= found["provenance"].keys()
    assert read_spec(run) == SPEC
    assert not Path("work", run).exists()


@pytest.mark.parametrize("chain", [[{"part": "lora", "dropout": 0.2}], "full"])
def test_a_member_is_trained_as_if_alone(chain: Any) -> None:
    specs = [run_spec(chain, lr=lr, seed=seed) for lr, seed in ((1e-2, 0), (1e-3, 1))]
    train_pack(pack_of(*specs), StopFlag())
    for spec in reversed(specs):
        train_pack(pack_of(spec, runs=Path("second"), work=Path("work2")), StopFlag())
    for member in pack_of(*specs).members:
        assert_same(member.run)


def test_a_pack_computes_with_the_threads_of_its_job(steps: list[int]) -> None:
    """However many the machine, or an earlier job in the process, has; Snakemake tells all other libraries."""
    seen: list[int] = []
    before = torch.get_num_threads()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Loop, "settle", lambda self: seen.append(torch.get_num_threads()))
            train_pack(pack_of(run_spec("lora", steps=1), threads=2), StopFlag())
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {2}


def test_a_finished_member_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are still to be trained: weights can be gigabytes."""
    found = [run_spec("full", steps=1, lr=lr) for lr in (1e-2, 1e-3, 1e-4, 1e-5)]
    train_pack(pack_of(found[0]), StopFlag())
    asked: list[str] = []
    inner = Pack.is_finished
    monkeypatch.setattr(Pack, "is_finished", lambda self, member: asked.append(member.run) or inner(self, member))
    pack = pack_of(*found)
    train_pack(pack, StopFlag())
    assert [asked.count(member.run) for member in pack.members] == [1, 2, 2, 2]  # once more when its turn has come


def test_a_finished_member_is_skipped(steps: list[int]) -> None:
    train_pack(pack_of(SPEC), StopFlag())
    train_pack(pack_of(SPEC, run_spec("lora", steps=2, lr=1e-3)), StopFlag())
    assert steps == [0, 1, 0, 1]


@pytest.mark.parametrize("why", ["other code", "damaged", "no weights", "no scores", "forgotten"])
def test_a_member_is_trained_again(why: str, steps: list[int]) -> None:
    pack = pack_of(SPEC, keep_weights=why != "no weights")
    train_pack(pack, StopFlag())
    run = pack.members[0].run
    again = pack_of(SPEC, code="newer" if why == "other code" else "code")
    if why == "damaged":
        file = RUNS / run / WEIGHTS
        file.write_bytes(file.read_bytes()[:-1])
    if why == "no scores":
        again = pack_of(SPEC, scores=("eval/test.json",))
    if why == "forgotten":
        assert forget(run)
        assert not forget(run)
    train_pack(again, StopFlag())
    assert steps == [0, 1, 0, 1]


@pytest.mark.parametrize("changed", ["code", "torch"])
def test_what_is_not_the_same_does_not_go_on_from_a_checkpoint(
    changed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """That would give a result that no version of the code, and no torch, gives."""
    pack = pack_of(SPEC)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Preempted, match="is saved at step 1"):
        train_pack(pack, StopAt(0, patch))
    if changed == "torch":
        monkeypatch.setattr("lowrank.train.together.torch.__version__", "2.99.0")
    train_pack(pack_of(SPEC, code="newer" if changed == "code" else "code"), StopFlag())
    said = capsys.readouterr().err
    assert "checkpoint passed over" in said
    assert f"was made with {{'{changed}': " in said
    assert [row["step"] for row in history(pack.members[0].run)] == [1, 2]


class TestDisksThatRefuse:
    @pytest.mark.parametrize(
        ("number", "message"), [(errno.EROFS, "Read-only file system"), (errno.ENOSPC, "No space left on device")]
    )
    def test_results_that_cannot_be_written(self, number: int, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
        pack = pack_of(SPEC)

        def refuse(*args: Any, **kwargs: Any) -> str:
            if "results" in str(kwargs["dir"]):
                raise OSError(number, os.strerror(number), str(kwargs["dir"]))
            return str(mkdtemp(*args, **kwargs))

        mkdtemp = files.tempfile.mkdtemp
        monkeypatch.setattr(files.tempfile, "mkdtemp", refuse)
        with pytest.raises(LowrankError, match=f"{pack.members[0].run}: cannot be written: {message}") as failure:
            train_pack(pack, StopFlag())
        assert failure.value.exit_code == 1

    def test_a_file_where_a_folder_is_needed(self) -> None:
        pack = pack_of(SPEC)
        Path("work").write_text("")
        with pytest.raises(LowrankError, match="cannot be written"):
            train_pack(pack, StopFlag())


class TestHistory:
    def test_comes_back_with_nulls(self, tmp_path: Path) -> None:
        rows = [{"step": i, "epoch": i / 3, "lr": 0.1, "train_loss": None if i == 9 else 1 / i} for i in range(1, 20)]
        rows[4]["val_loss"] = 0.25
        write_history(tmp_path / "h.parquet", rows)
        expected = [{"val_loss": None, "val_accuracy": None} | row for row in rows]
        assert read_history(tmp_path / "h.parquet") == expected

    def test_tensorboard_reads_its_events(self) -> None:
        pack = pack_of(run_spec("lora", steps=5, eval_every=2))
        train_pack(pack, StopFlag())
        run = pack.members[0].run
        events = EventAccumulator(str(RUNS / run / "tensorboard")).Reload()
        assert set(events.Tags()["scalars"]) == {"lr", "train_loss", "val_loss", "val_accuracy"}
        for name in ("train_loss", "val_loss"):
            rows = [(row["step"], row[name]) for row in history(run) if row[name] is not None]
            found = [(event.step, event.value) for event in events.Scalars(name)]
            assert [step for step, _ in found] == [step for step, _ in rows]
            assert [value for _, value in found] == pytest.approx([value for _, value in rows], rel=1e-6)


SCHEDULES = {
    "constant": ({}, [1.0, 1.0, 1.0, 1.0]),
    "constant after warm-up": ({"warmup_steps": 2}, [0.5, 1.0, 1.0, 1.0]),
    "linear": ({"schedule": "linear"}, [1.0, 0.75, 0.5, 0.25]),
    "linear to a floor": ({"schedule": "linear", "min_lr_fraction": 0.2}, [1.0, 0.8, 0.6, 0.4]),
    "cosine": ({"schedule": "cosine"}, [1.0, 0.8535534, 0.5, 0.1464466]),
    "cosine after warm-up": ({"schedule": "cosine", "warmup_steps": 2}, [0.5, 1.0, 1.0, 0.5]),
    "jagged": (
        {"schedule": "jagged_cosine", "warmup_steps": 2, "cycle_steps": 2, "min_lr_fraction": 0.5},
        [0.5, 1.0, 0.5, 0.75],
    ),
}


@pytest.mark.parametrize(("train", "factors"), SCHEDULES.values(), ids=SCHEDULES.keys())
def test_schedules(train: dict[str, Any], factors: list[float]) -> None:
    factor = schedule(run_spec("lora", steps=4, **train).train, 4)
    assert [factor(step) for step in range(4)] == pytest.approx(factors)


def test_a_run_of_lora_imports_nothing_heavy_of_ours(tmp_path: Path) -> None:
    """What transformers imports for a model class is its own; the rest of the process adds none of these."""
    pack = pack_of(SPEC)
    code = (
        "import sys, importlib\n"
        "importlib.import_module('transformers.models.bert.modeling_bert')\n"
        "theirs = set(sys.modules)\n"
        "from tests.training_lab import *\n"
        "from lowrank.signals import StopFlag\n"
        "from lowrank.train.pack import train_pack\n"
        "train_pack(pack_of(run_spec('lora', steps=2)), StopFlag())\n"
        "print(*sorted({name for name in set(sys.modules) - theirs}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    ours = {name.split(".")[0] for name in done.stdout.split()}
    heavy = {
        "peft",
        "datasets",
        "pandas",
        "bitsandbytes",
        "accelerate",
        "galore_torch",
        "sklearn",
        "scipy",
        "matplotlib",
    }
    assert not ours & heavy
    loaded = set(done.stdout.split())
    assert not {"transformers.trainer", "lowrank.report", "lowrank.trainer", "tensorboard.summary"} & loaded
    parts = {name for name in loaded if name.startswith("lowrank.methods.")}
    assert not {"lowrank.methods.galore", "lowrank.methods.velora", "lowrank.methods.nf4"} & parts
    assert manifest(pack.members[0].run)["status"] == "ok"


def test_a_fault_is_found_before_the_first_step(steps: list[int]) -> None:
    with pytest.raises(ConfigError, match="rank 64 is too large for 'bert"):
        train_pack(pack_of(run_spec([{"part": "lora", "rank": 64}])), StopFlag())
    assert steps == []
