"""Memory that runs out. The failure is injected where a batch is computed, with the error that torch raises there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lowrank.evaluate import score as scoring
from lowrank.evaluate.pack import evaluate_pack
from lowrank.files import read_json
from lowrank.measure import ran_out
from lowrank.run_folder import RUNS
from lowrank.signals import StopFlag
from lowrank.spec import EvalSpec, RunSpec
from lowrank.train import pack as pack_module
from lowrank.train.loop import Loop
from lowrank.train.pack import train_pack
from lowrank.train.stacked_loop import StackedLoop
from tests.training_lab import history, manifest, pack_of, prepared, run_spec, weights

SPEC = run_spec("lora", dropout=0.0)  # dropout draws other masks for other micro-batches
SECOND = {"runs": Path("second"), "work": Path("work2")}

Fits = Callable[[int, int], bool]
"""Whether so many rows fit, at the nth call."""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pack_module, "CHECKPOINT_EVERY_S", 0.0)  # a checkpoint after each step


def memory_for(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, place: int, fits: Fits) -> None:
    """Makes a function run out of memory where the batch among its arguments does not fit."""
    inner, calls = getattr(owner, name), []

    def guarded(*args: Any) -> Any:
        calls.append(1)
        if not fits(len(args[place]["input_ids"]), len(calls)):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return inner(*args)

    monkeypatch.setattr(owner, name, guarded)


def train(*specs: RunSpec, **fields: Any) -> list[str]:
    pack = pack_of(*specs, **fields)
    train_pack(pack, StopFlag())
    return [member.run for member in pack.members]


def test_every_way_of_saying_so_is_known() -> None:
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(2**60, dtype=np.uint8)
    assert ran_out(of_torch.value)
    assert ran_out(of_numpy.value)
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory."))
    assert ran_out(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_once_at_the_start_is_as_if_half_had_been_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    half = SPEC.model_copy(update={"train": SPEC.train.model_copy(update={"micro_batch_size": 8})})
    (asked,) = train(half)
    memory_for(monkeypatch, Loop, "losses", 1, lambda rows, call: call > 1)
    (run,) = train(SPEC)
    assert history(run) == history(asked)
    assert {name: tensor.tolist() for name, tensor in weights(run).items()} == {
        name: tensor.tolist() for name, tensor in weights(asked).items()
    }
    assert manifest(run)["cut"] == {"micro_batch_size": 8, "because": "out of memory"}
    assert manifest(asked)["cut"] is None


def test_later_it_goes_on_from_its_checkpoint(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (run,) = train(SPEC)
    memory_for(monkeypatch, Loop, "losses", 1, lambda rows, call: call != 4)
    train(SPEC, **SECOND)
    said = capfd.readouterr().err
    assert f"{run}: out of memory; it goes on with micro-batches of 8, in the same batches" in said
    assert f"{run}: goes on from step 3" in said
    whole, cut = history(run), history(run, Path("second"))
    assert cut[:3] == whole[:3]
    assert [row["train_loss"] for row in cut] == pytest.approx([row["train_loss"] for row in whole], rel=1e-5)
    assert cut[-1]["val_loss"] == pytest.approx(whole[-1]["val_loss"], rel=1e-5)


def test_a_run_that_was_cut_stays_so_after_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, polled = StopFlag(), []

    def asked_at_the_second(self: Loop, *rest: Any) -> None:
        polled.append(1)
        stop.received = "SIGTERM" if len(polled) == 2 else None
        stop.check("saved")

    with monkeypatch.context() as patched:
        memory_for(patched, Loop, "losses", 1, lambda rows, call: rows <= 8)
        patched.setattr(Loop, "poll", asked_at_the_second)
        with pytest.raises(Exception, match="SIGTERM received"):
            train_pack(pack_of(SPEC), stop)
    (run,) = train(SPEC)
    assert manifest(run)["cut"]["micro_batch_size"] == 8


def test_heads_still_share_out_the_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    memory_for(monkeypatch, Loop, "losses", 1, lambda rows, call: rows <= 7)
    (run,) = train(run_spec([{"part": "lte", "num_lora_heads": 2}], dropout=0.0))
    assert manifest(run)["cut"]["micro_batch_size"] == 4


def test_always_is_a_result_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    memory_for(monkeypatch, Loop, "losses", 1, lambda rows, call: False)
    (run,) = train(SPEC)
    found = manifest(run)
    assert (found["status"], found["cause"]) == (
        "failed",
        "out of memory after step 0, with the smallest micro-batches",
    )
    assert found["metrics"]["best_val_loss"] is None
    assert "parameters" not in found["metrics"]
    assert weights(run) == {}
    evaluate_pack([run], "test", EvalSpec(), "code", prepared(SPEC), StopFlag())
    record = read_json(RUNS / run / "eval" / "test.json")
    assert (record["status"], record["cause"], record["metrics"]) == ("failed", found["cause"], {})


def test_in_evaluations_only_leaves_training_as_it_was(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (run,) = train(SPEC)
    memory_for(monkeypatch, scoring, "forward", 1, lambda rows, call: rows <= 5)
    train(SPEC, **SECOND)
    assert "out of memory with 16 rows at a time; scoring goes on with 8" in capfd.readouterr().err
    assert manifest(run, Path("second"))["cut"] is None
    for whole, cut in zip(history(run), history(run, Path("second")), strict=True):
        assert cut["train_loss"] == whole["train_loss"]
        assert cut["val_loss"] == (whole["val_loss"] and pytest.approx(whole["val_loss"], rel=1e-5))


def test_a_score_that_does_not_fit_is_taken_again_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = train(SPEC)

    def scored() -> dict[str, Any]:
        evaluate_pack([run], "test", EvalSpec(), "code", prepared(SPEC), StopFlag())
        found: dict[str, Any] = read_json(RUNS / run / "eval" / "test.json")
        return found

    with monkeypatch.context() as patched:
        memory_for(patched, scoring, "forward", 1, lambda rows, call: False)
        found = scored()
    assert (found["status"], found["cause"]) == ("failed", "out of memory: score does not fit beside this model")
    assert scored()["status"] == "ok"


def test_runs_that_do_not_fit_together_go_on_alone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    specs = [SPEC, SPEC.model_copy(update={"train": SPEC.train.model_copy(update={"lr": 5e-3})})]
    train(*specs)
    memory_for(monkeypatch, StackedLoop, "losses", 1, lambda rows, call: call < 3)
    first, second = train(*specs, **SECOND)
    assert f"{first} and 1 more: out of memory; they go on one after another" in capfd.readouterr().err
    for run in (first, second):
        found = manifest(run, Path("second"))
        assert (found["status"], found["cut"]) == ("ok", None)
        assert history(run, Path("second"))[:2] == history(run)[:2]
        assert found["metrics"]["best_val_loss"] == pytest.approx(manifest(run)["metrics"]["best_val_loss"], rel=1e-5)
