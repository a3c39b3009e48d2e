"""Several processes that train one run: the losses of one process, and the same state in each of them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank import registry
from lowrank.compositions import CHAINS, least_chain, small
from lowrank.methods.chain import Chain
from lowrank.signals import StopFlag
from lowrank.spec import RunSpec
from lowrank.train import checkpoint, together
from lowrank.train import pack as pack_module
from lowrank.train.loop import Loop
from lowrank.train.pack import Pack, train_pack
from tests.rank_lab import train_in
from tests.test_train_resume import assert_same
from tests.tolerances import BIT_EXACT, PROCESSES, Tolerance
from tests.training_lab import history, manifest, pack_of, run_spec, weights

NAMED = sorted({*map(least_chain, registry.parts()), *(tuple(chain.split("+")) for chain in CHAINS)})
SECOND = Path("second")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def second(spec: RunSpec, processes: int = 2) -> Pack:
    return pack_of(spec, runs=SECOND, work=Path("work2"), processes=processes)


def losses(run: str, folder: Path) -> torch.Tensor:
    """Of training and validation, in order."""
    rows = history(run, folder)
    found = [row[name] for row in rows for name in ("train_loss", "val_loss") if row[name] is not None]
    return torch.tensor(found, dtype=torch.float64)


def hold_together(spec: RunSpec, tolerance: Tolerance, processes: int = 2) -> str:
    """Asserts that one process and several give the same losses; returns the run."""
    train_pack(pack_of(spec), StopFlag())
    pack = second(spec, processes)
    assert train_in(processes, pack) == [0] * processes
    run = pack.members[0].run
    tolerance.check(losses(run, SECOND), losses(run, Path("results/runs")))
    assert manifest(run, SECOND)["provenance"]["processes"] == processes
    assert manifest(run, SECOND)["metrics"]["tokens"] == manifest(run)["metrics"]["tokens"]
    return run


def in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Doubles, where no chain is thrown off by rounding: GaLore's basis and what is pruned turn on tiny differences."""
    inner = Chain.attach

    def attach(chain: Chain, model: Any, seed: int = 0) -> Chain:
        inner(chain, model, seed)
        model.double()
        return chain

    monkeypatch.setattr(Chain, "attach", attach)


def keep_every_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process leaves what a checkpoint of its own would hold at the end, under `end-<rank>`."""
    inner = together._run

    def run(loop: Loop, *told: Any) -> None:
        inner(loop, *told)
        state = {**loop.state_dict(), "loop": {}}
        checkpoint.save(Path(f"end-{loop.ranks.rank}"), loop.step, state, {})

    monkeypatch.setattr(together, "_run", run)


@pytest.mark.parametrize("chain", NAMED, ids="+".join)
def test_every_chain_has_the_losses_of_one_process(chain: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three steps the last has one micro-batch, so that one of the processes has nothing to do."""
    if "nf4" not in chain:  # whose codes stand for single precision
        in_double(monkeypatch)
    keep_every_end(monkeypatch)
    options = [small(part) for part in chain]
    spec = run_spec(options, epochs=1, micro_batch_size=8, dropout=0.0, clip_norm=1.0, data={"train_rows": 40})
    hold_together(spec, PROCESSES)
    ours, theirs = (checkpoint.load_newest(Path(f"end-{rank}"), {}) for rank in range(2))
    assert ours is not None
    assert theirs is not None
    flat: list[dict[str, torch.Tensor]] = [{}, {}]
    values = [checkpoint._flatten(state, "", tensors) for state, tensors in zip((ours, theirs), flat, strict=True)]
    assert values[0] == values[1]
    assert len(flat[0]) > 3
    for name, tensor in flat[0].items():
        BIT_EXACT.check(flat[1][name], tensor)


def text_spec(**train: Any) -> RunSpec:
    """Responses alone are learned, of unequal lengths; with dropout in no layer."""
    return RunSpec.model_validate(
        {
            "task": "causal_lm",
            "model": {"card": "smoke_llama", **train.pop("model", {})},
            "data": {"card": "smoke_instructions", "max_length": 32, "train_rows": 20, "train_on_inputs": False},
            "chain": train.pop("chain", "full"),
            "train": {"lr": 1e-3, "batch_size": 8, "micro_batch_size": 2, "epochs": 1, **train},
        }
    )


def test_unequal_tokens_weigh_what_they_should() -> None:
    """Three processes share four micro-batches of unequal numbers of tokens, the last batch has two for them."""
    hold_together(text_spec(), PROCESSES, processes=3)


def test_bfloat16_and_blocks_computed_again() -> None:
    model = {"dtype": "bfloat16", "gradient_checkpointing": True}
    chain = ["nf4", "lora", {"part": "velora", "num_groups": 4}, {"part": "paged_adamw", "bits": 8}]
    spec = text_spec(model=model, chain=chain, precision="bf16", steps=2, epochs=None)
    hold_together(spec, Tolerance(2e-3, 0.0, "losses after one step whose gradients were summed in bfloat16 (4e-3)"))


SPEC = run_spec([{"part": "lora", "dropout": 0.2}], micro_batch_size=8)
"""With dropout, in the base too: random states have to be right."""


def at_step(number: int, rank: int, monkeypatch: pytest.MonkeyPatch, do: Any) -> None:
    """`do(loop)` in one process, in the midst of a step."""
    inner = Loop.update

    def update(loop: Loop, step: int) -> None:
        inner(loop, step)
        if step == number and loop.ranks.rank == rank:
            do(loop)

    monkeypatch.setattr(Loop, "update", update)


def test_processes_drop_different_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each draws for its own examples, and all stand at one random state between steps."""
    keep_every_end(monkeypatch)
    inner = Loop.losses

    def noted(loop: Loop, *told: Any) -> Any:
        Path(f"drawn-{loop.ranks.rank}").write_text(str(torch.rand(()).item()))
        return inner(loop, *told)

    monkeypatch.setattr(Loop, "losses", noted)
    assert train_in(2, second(SPEC)) == [0, 0]
    assert Path("drawn-0").read_text() != Path("drawn-1").read_text()
    states = [checkpoint.load_newest(Path(f"end-{rank}"), {}) for rank in range(2)]
    assert states[0] is not None
    assert states[1] is not None
    BIT_EXACT.check(states[0]["rng"]["cpu"], states[1]["rng"]["cpu"])


def test_a_stop_that_reaches_one_process_stops_all_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train_in(2, pack_of(SPEC, processes=2)) == [0, 0]
    with pytest.MonkeyPatch.context() as patch:
        at_step(2, 1, patch, lambda loop: os.kill(os.getpid(), signal.SIGTERM))
        assert train_in(2, second(SPEC), lambda rank: StopFlag().install()) == [75, 75]
    run = second(SPEC).members[0].run
    assert f"rank 0: a signal to another process was received: {run} is saved at step 3 of 6" in capfd.readouterr().err
    assert [path.name for path in Path("work2", run, "checkpoints").iterdir()] == ["step-00000003"]
    assert train_in(2, second(SPEC)) == [0, 0]
    assert_same(run)
    assert not Path("work2", run).exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_ends_the_others_and_the_run_goes_on(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_module, "CHECKPOINT_EVERY_S", 0.0)  # a checkpoint after each step
    assert train_in(2, pack_of(SPEC, processes=2)) == [0, 0]
    with pytest.MonkeyPatch.context() as patch:
        at_step(3, rank, patch, lambda loop: os.kill(os.getpid(), signal.SIGKILL))
        codes = train_in(2, second(SPEC))
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] == 1
    assert train_in(2, second(SPEC)) == [0, 0]
    assert_same(second(SPEC).members[0].run)


def test_a_run_begun_by_two_processes_is_finished_by_one() -> None:
    """It is the same run, by its name and up to rounding."""
    spec = run_spec("lora", micro_batch_size=8, dropout=0.0)
    train_pack(pack_of(spec), StopFlag())
    with pytest.MonkeyPatch.context() as patch:
        at_step(2, 0, patch, lambda loop: os.kill(os.getpid(), signal.SIGUSR1))
        assert train_in(2, second(spec), lambda rank: StopFlag().install()) == [75, 75]
    train_pack(second(spec, 1), StopFlag())
    run = second(spec).members[0].run
    PROCESSES.check(losses(run, SECOND), losses(run, Path("results/runs")))


def test_memory_that_runs_out_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """All go on from the newest checkpoint with half of the micro-batches; elsewhere, all end."""
    spec = run_spec("lora", micro_batch_size=8, dropout=0.0, steps=4)
    monkeypatch.setattr(pack_module, "CHECKPOINT_EVERY_S", 0.0)
    train_pack(pack_of(spec), StopFlag())
    inner = Loop.losses

    def losses_of(loop: Loop, batch: Any, units: Any) -> Any:
        if loop.ranks.rank == 1 and loop.step == 1 and len(batch["labels"]) == 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return inner(loop, batch, units)

    monkeypatch.setattr(Loop, "losses", losses_of)
    assert train_in(2, second(spec)) == [0, 0]
    run = second(spec).members[0].run
    PROCESSES.check(losses(run, SECOND), losses(run, Path("results/runs")))
    assert manifest(run, SECOND)["cut"] == {"micro_batch_size": 4, "because": "out of memory"}

    def exhausted(loop: Loop) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    at_step(2, 1, monkeypatch, exhausted)
    assert train_in(2, pack_of(spec, runs=Path("third"), processes=2)) == [1, 1]
    assert not Path("third").exists()


def test_members_follow_each_other() -> None:
    """They are not stacked; one that is finished is left alone by all processes."""
    specs = [run_spec("lora", micro_batch_size=8, dropout=0.0, lr=lr) for lr in (1e-3, 2e-3, 4e-3)]
    pack = pack_of(*specs, processes=2)
    train_pack(pack_of(specs[1]), StopFlag())
    assert train_in(2, pack) == [0, 0]
    for member, processes in zip(pack.members, (2, 1, 2), strict=True):
        assert manifest(member.run)["provenance"]["processes"] == processes


def test_a_diverging_run_diverges_everywhere() -> None:
    spec = run_spec("full", lr=1e30, micro_batch_size=8, steps=4)
    assert train_in(2, second(spec)) == [0, 0]
    found = manifest(second(spec).members[0].run, SECOND)
    assert found["status"] == "diverged"
    assert weights(found["run"], SECOND)
