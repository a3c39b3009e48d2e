"""Memory of the device that really runs out: in a micro-batch, in a stack, in evaluations, and for good."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank.evaluate import score as scoring
from lowrank.measure import let_go, ran_out
from lowrank.spec import RunSpec
from lowrank.train import pack as pack_module
from lowrank.train.loop import Loop
from lowrank.train.stacked_loop import StackedLoop
from tests.gpu.lab import CPU, CUDA_PACK, DEVICE, assert_like, cuda_alone, losses, train
from tests.training_lab import history, manifest, member, run_spec

pytestmark = cuda_alone

ROW = 1 << 26
"""Bytes that the tests take for each row of a batch."""

SPEC = run_spec("lora", dropout=0.0)
Limit = Callable[[int], None]


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Limit]:
    """Leaves so many rows' memory on the device, beside what lies there and what tiny models take."""
    monkeypatch.setattr(pack_module, "CHECKPOINT_EVERY_S", 0.0)  # a checkpoint after each step
    total = torch.cuda.get_device_properties(DEVICE).total_memory

    def leave(rows: int) -> None:
        let_go()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + rows * ROW) / total)

    yield leave
    torch.cuda.set_per_process_memory_fraction(1.0)
    let_go()


def take_memory(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, place: int) -> None:
    """Makes a function take memory for the rows of the batch among its arguments, until it returns."""
    inner = getattr(owner, name)

    def taking(*args: Any) -> Any:
        taken = torch.empty(len(args[place]["input_ids"]) * ROW, dtype=torch.uint8, device=DEVICE)
        result = inner(*args)
        del taken
        return result

    monkeypatch.setattr(owner, name, taking)


def with_micro_batches(size: int) -> RunSpec:
    return SPEC.model_copy(update={"train": SPEC.train.model_copy(update={"micro_batch_size": size})})


def test_every_way_of_saying_so_is_known(limit: Limit) -> None:
    """Of torch's allocator, and of a library that allocates for itself."""
    limit(1)
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(4 * ROW, dtype=torch.uint8, device=DEVICE)
    assert ran_out(of_torch.value)
    with pytest.raises(RuntimeError) as of_cuda:
        torch.empty(1 << 50, dtype=torch.uint8, device=DEVICE)
    assert ran_out(of_cuda.value)


def test_in_a_micro_batch_it_is_halved_and_the_run_goes_on(
    limit: Limit, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """16 rows do not fit, 8 do: the numbers are those of a run that asks for 8."""
    half = with_micro_batches(8)
    asked, here = train(half, folder="asked"), train(SPEC, device=CPU, folder="cpu")
    take_memory(monkeypatch, Loop, "losses", 1)
    limit(12)
    runs = train(SPEC)
    run = member(SPEC).run
    assert f"{run}: out of memory; it goes on with micro-batches of 8, in the same batches" in capfd.readouterr().err
    assert manifest(run, runs)["cut"] == {"micro_batch_size": 8, "because": "out of memory"}
    assert history(run, runs) == history(member(half).run, asked)
    CUDA_PACK.check(losses(SPEC, runs), losses(SPEC, here))


def test_twice(limit: Limit, monkeypatch: pytest.MonkeyPatch) -> None:
    take_memory(monkeypatch, Loop, "losses", 1)
    limit(6)
    assert manifest(member(SPEC).run, train(SPEC))["cut"]["micro_batch_size"] == 4


def test_for_good_it_is_a_result_that_says_so(limit: Limit, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Loop.losses

    def too_much(loop: Loop, *told: Any) -> Any:
        torch.empty(40 * ROW, dtype=torch.uint8, device=DEVICE)
        return inner(loop, *told)

    monkeypatch.setattr(Loop, "losses", too_much)
    limit(4)
    found = manifest(member(SPEC).run, train(SPEC))
    assert (found["status"], found["cause"]) == (
        "failed",
        "out of memory after step 0, with the smallest micro-batches",
    )


def test_in_evaluations_only(limit: Limit, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    plain = train(SPEC, folder="plain")
    take_memory(monkeypatch, scoring, "forward", 1)
    limit(12)
    runs = train(SPEC)
    assert "out of memory with 16 rows at a time; scoring goes on with 8" in capfd.readouterr().err
    assert manifest(member(SPEC).run, runs)["cut"] is None
    assert_like(SPEC, runs, plain, CUDA_PACK)


def test_runs_that_do_not_fit_together_go_on_alone(
    limit: Limit, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    specs = [run_spec("lora", dropout=0.0, lr=lr) for lr in (1e-3, 1e-4, 1e-5)]
    plain = train(*specs, folder="plain")
    take_memory(monkeypatch, StackedLoop, "losses", 1)
    limit(40)
    runs = train(*specs)
    assert "and 2 more: out of memory; they go on one after another" in capfd.readouterr().err
    for spec in specs:
        assert manifest(member(spec).run, runs)["cut"] is None
        assert_like(spec, runs, plain, CUDA_PACK)


def test_what_a_failed_try_held_is_free_again(limit: Limit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model and the optimizer of the first try do not lie beside those of the second."""
    train(SPEC, folder="before")  # libraries keep memory to work in from their first call on
    let_go()
    before = torch.cuda.memory_allocated()
    take_memory(monkeypatch, Loop, "losses", 1)
    limit(12)
    held: list[int] = []
    inner = Loop.run

    def run(loop: Loop, *told: Any) -> None:
        held.append(torch.cuda.memory_allocated())
        inner(loop, *told)

    monkeypatch.setattr(Loop, "run", run)
    assert Path(train(SPEC)).exists()
    assert len(held) == 2
    assert held[1] - before < 1.5 * (held[0] - before)
