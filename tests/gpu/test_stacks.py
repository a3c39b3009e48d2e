"""Runs that are trained together on the GPU: as alone there, through divergence, stops and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank.compositions import small
from lowrank.errors import Preempted
from lowrank.signals import StopFlag
from lowrank.spec import RunSpec
from lowrank.train import checkpoint, together
from lowrank.train.loop import Loop
from lowrank.train.pack import train_pack
from lowrank.train.stacked_loop import StackedLoop
from tests.gpu.lab import CUDA_BF16_PACK, CUDA_DOUBLE, CUDA_PACK, DEVICE, assert_like, computing_on, in_double, train
from tests.test_stacked_seeds import one_trunk  # noqa: F401
from tests.test_train_resume import NAMED, SPECIAL, StopAt, all_stopped_and_resumed, assert_same, stopped_and_resumed
from tests.training_lab import manifest, member, pack_of, run_spec

PRUNE = {"part": "prune", "start": 2, "every": 3}
STACKS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "lora": ([[{"part": "lora", "rank": rank, "alpha": 4 * rank}] for rank in (4, 8, 2)], {}),
    "lora, bfloat16": ([[{"part": "lora", "rank": rank}] for rank in (4, 8, 2)], {"precision": "bf16"}),
    "biases": ([[{"part": "lora", "bias": "all"}]] * 3, {"micro_batch_size": 7}),
    "hira": ([[{"part": "hira", "rank": rank}] for rank in (4, 2, 8)], {}),
    "qlora": ([["nf4", {"part": "lora", "rank": 4}]] * 3, {"batch_size": 12}),
    "probe": ([["linear_probe"]] * 3, {"batch_size": 5, "micro_batch_size": 2}),
    "prune": ([["lora", {**PRUNE, "sparsity": sparsity}] for sparsity in (0.5, 0.2, 0.7)], {"select": "best"}),
    "prune, l1": ([["lora", {**PRUNE, "method": "l1", "l1_lambda": l1}] for l1 in (1e-3, 1e-4, 1e-5)], {}),
    "velora": ([[{"part": "lora", "rank": 4}, {"part": "velora", "num_groups": 4}]] * 3, {"batch_size": 7}),
    "velora, random": ([["lora", {"part": "velora", "num_groups": 4, "init": "random"}]] * 3, {}),
    "lean": ([["lora", "lean"]] * 3, {}),
}
RATES = (1e-3, 3e-4, 1e-4)
TRAINS: tuple[dict[str, Any], ...] = (
    {"weight_decay": 0.1, "clip_norm": 0.1},
    {"schedule": "cosine", "warmup_steps": 3},
    {"clip_norm": 1.0},
)


def specs_of(name: str, **train: Any) -> list[RunSpec]:
    """Three runs that differ in learning rate, clipping, schedule and, where a part has one, rank."""
    chains, settings = STACKS[name]
    return [
        run_spec(chain, lr=lr, dropout=0, steps=8, eval_every=4, **settings | own | train)
        for chain, lr, own in zip(chains, RATES, TRAINS, strict=True)
    ]


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Members of each loop, for every step that is taken."""
    taken: list[int] = []
    inner = Loop.one_step

    def one_step(loop: Loop, step: int) -> Any:
        taken.append(len(loop.states))
        return inner(loop, step)

    monkeypatch.setattr(Loop, "one_step", one_step)
    return taken


@pytest.mark.parametrize("name", [name for name in STACKS if name not in ("qlora", "lora, bfloat16")])
def test_in_double_as_alone(name: str, sizes: list[int]) -> None:
    specs = specs_of(name)
    with in_double():
        runs = train(*specs)
        assert set(sizes) == {3}
        for spec in specs:
            assert_like(spec, runs, train(spec, folder="alone"), CUDA_DOUBLE, weigh=True)


@pytest.mark.parametrize("name", STACKS)
def test_in_single_precision_as_alone(name: str, sizes: list[int]) -> None:
    specs = specs_of(name)
    runs = train(*specs)
    assert set(sizes) == {3}
    for spec in specs:
        tolerance = CUDA_BF16_PACK if spec.train.precision == "bf16" else CUDA_PACK
        assert_like(spec, runs, train(spec, folder="alone"), tolerance)


@pytest.mark.usefixtures("one_trunk")
def test_seeds_of_one_run_are_trained_together(sizes: list[int]) -> None:
    """Their batches, heads and factors differ, and the texts of a step are of unequal lengths."""
    settings: dict[str, Any] = {"data": {"max_length": 64}, "batch_size": 4, "steps": 8, "eval_every": 4}
    specs = [run_spec("lora", seed=seed, dropout=0, **settings) for seed in range(3)]
    with in_double():
        runs = train(*specs)
        assert set(sizes) == {3}
        for spec in specs:
            assert_like(spec, runs, train(spec, folder="alone"), CUDA_DOUBLE, weigh=True)


def test_a_member_that_diverges_is_frozen_and_the_others_go_on(sizes: list[int]) -> None:
    specs = [run_spec("lora", lr=lr, dropout=0, steps=25, eval_every=10) for lr in (1e-3, 1e30, 1e-4)]
    runs = train(*specs)
    for spec in specs:
        alone = train(spec, folder="alone")
        found, expected = (manifest(member(spec).run, folder) for folder in (runs, alone))
        assert (found["status"], found["cause"]) == (expected["status"], expected["cause"])
        if found["status"] == "ok":
            assert_like(spec, runs, alone, CUDA_PACK)
    assert [manifest(member(spec).run, runs)["status"] for spec in specs] == ["ok", "diverged", "ok"]


def test_a_single_run_diverges_as_anywhere() -> None:
    spec = run_spec("full", lr=1e30, dropout=0, steps=6, eval_every=3)
    assert manifest(member(spec).run, train(spec))["status"] == "diverged"


RESUMED = [*SPECIAL.values(), *([small(part) for part in chain] for chain in NAMED)]


@pytest.mark.parametrize("chain", RESUMED, ids=[*SPECIAL.keys(), *("+".join(chain) for chain in NAMED)])
def test_a_resumed_run_is_bit_equal(chain: Any) -> None:
    """The base has dropout, so the random state of the device has to be right too."""
    spec = run_spec(chain, schedule="cosine", clip_norm=1.0, warmup_steps=1, data={"train_rows": 48})
    with computing_on(DEVICE):
        train_pack(pack_of(spec), StopFlag())
        assert_same(stopped_and_resumed(spec, 2))


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("step", [0, 4])
def test_a_resumed_stack_is_bit_equal(step: int, name: str) -> None:
    specs = specs_of(name)
    train(*specs)
    with computing_on(DEVICE):
        for run in all_stopped_and_resumed(specs, step):
            assert_same(run)


def test_a_member_goes_on_alone_from_the_checkpoint_of_a_stack() -> None:
    specs = specs_of("prune")
    with in_double():
        alone = [train(spec, folder="alone") for spec in specs]
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Preempted), computing_on(DEVICE):
            train_pack(pack_of(*specs), StopAt(5, patch))
        for spec, expected in zip(specs, alone, strict=True):
            assert_like(spec, train(spec), expected, CUDA_DOUBLE, weigh=True)


def test_everything_of_a_stack_lies_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a resumed one too: what parts keep beside the model is read from files."""
    specs = specs_of("prune")
    seen: list[set[str]] = []
    inner = StackedLoop.run

    def looked(loop: StackedLoop, *told: Any) -> None:
        inner(loop, *told)
        pruning: Any = loop.chain["prune"]
        held = [*loop.model.parameters(), *loop.model.buffers(), *pruning.masks.values(), *loop.trainable]
        seen.append({tensor.device.type for tensor in held})

    monkeypatch.setattr(StackedLoop, "run", looked)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Preempted), computing_on(DEVICE):
        train_pack(pack_of(*specs), StopAt(5, patch))
    train(*specs)
    assert seen == [{DEVICE.type}]


def test_a_checkpoint_holds_the_random_state_of_the_device() -> None:
    spec = run_spec("lora", steps=4, eval_every=2)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Preempted), computing_on(DEVICE):
        train_pack(pack_of(spec), StopAt(1, patch))
    own = member(spec)
    saved = checkpoint.load_newest(own.checkpoints(Path("work")), own.facts)
    assert saved is not None
    assert saved["rng"].keys() == ({"cpu", "cuda"} if torch.cuda.is_available() else {"cpu"})
    if torch.cuda.is_available():
        torch.cuda.manual_seed(5)
        assert not torch.equal(torch.cuda.get_rng_state(), saved["rng"]["cuda"])
        checkpoint.set_rng_state(saved["rng"])
        assert torch.equal(torch.cuda.get_rng_state(), saved["rng"]["cuda"])
    assert together.resumed([own], Path("work"))[0][1][0] is not None
