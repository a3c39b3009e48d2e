"""A run that is stopped and goes on ends with the bits of one that was not, for every kind of chain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank import registry
from lowrank.compositions import CHAINS, least_chain, small
from lowrank.errors import Preempted
from lowrank.signals import StopFlag
from lowrank.spec import RunSpec
from lowrank.train import loop as loop_module
from lowrank.train import pack as pack_module
from lowrank.train.loop import Loop
from lowrank.train.pack import train_pack
from tests.tolerances import BIT_EXACT
from tests.training_lab import history, manifest, pack_of, run_spec, weights

SPECIAL: dict[str, Any] = {
    "lora with dropout": [{"part": "lora", "dropout": 0.3, "head": "adapted"}],
    "galore 8 bit": ["full", {"part": "galore", "rank": 4, "update_gap": 2, "optimizer": "adamw8bit"}],
    "lora+velora with dropout": [{"part": "lora", "dropout": 0.3}, {"part": "velora", "num_groups": 4}],
    "gradual pruning": ["lora", {"part": "prune", "schedule": "linear", "start": 1, "every": 2, "end": 5}],
    "paged 8 bit": ["full", {"part": "paged_adamw", "bits": 8}],
}
"""What has state that the defaults do not have."""

NAMED = sorted({*map(least_chain, registry.parts()), *(tuple(chain.split("+")) for chain in CHAINS)})


class StopAt(StopFlag):
    """Behaves as if a signal arrived during a step."""

    def __init__(self, step: int, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        inner = Loop.one_step

        def one_step(loop: Loop, number: int) -> Any:
            if number == step:
                self.received = "SIGTERM"
            return inner(loop, number)

        patch.setattr(Loop, "one_step", one_step)


def stopped_and_resumed(spec: Any, step: int) -> str:
    """Trains one run in two processes' worth of work below `second/`; returns its id."""
    (run,) = all_stopped_and_resumed([spec], step)
    return run


def all_stopped_and_resumed(specs: Sequence[RunSpec], step: int) -> list[str]:
    """The same for runs that train together."""
    pack = pack_of(*specs, runs=Path("second"), work=Path("work2"))
    more = f"and {len(specs) - 1} more " if len(specs) > 1 else ""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Preempted, match=f"{more}is saved at step {step + 1} of"):
        train_pack(pack, StopAt(step, patch))
    torch.manual_seed(999)  # another process starts elsewhere
    train_pack(pack, StopFlag())
    return [one.run for one in pack.members]


def assert_same(run: str, other: Path = Path("second")) -> None:
    ours, theirs = weights(run), weights(run, other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        BIT_EXACT.check(theirs[name], tensor)
    assert history(run, other) == history(run)
    metrics = [dict(manifest(run, folder)["metrics"], train_time_s=None) for folder in (Path("results/runs"), other)]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize(
    "chain",
    [*SPECIAL.values(), *([small(part) for part in chain] for chain in NAMED)],
    ids=[*SPECIAL.keys(), *("+".join(chain) for chain in NAMED)],
)
def test_a_resumed_run_is_bit_equal(chain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = run_spec(chain, schedule="cosine", clip_norm=1.0, warmup_steps=1, data={"train_rows": 48})
    train_pack(pack_of(spec), StopFlag())
    run = stopped_and_resumed(spec, 2)
    assert [row["step"] for row in history(run)] == [1, 2, 3, 4, 5, 6]
    assert all(row["train_loss"] is not None for row in history(run))
    assert_same(run)


@pytest.mark.parametrize("chain", ["lora", "full"])
def test_bfloat16_weights(chain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = run_spec(chain, dtype="bfloat16", precision="bf16", data={"train_rows": 48})
    train_pack(pack_of(spec), StopFlag())
    assert_same(stopped_and_resumed(spec, 3))


@pytest.mark.parametrize("step", range(5))
def test_best_weights_survive_a_stop_at_any_step(step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = run_spec("full", lr=0.05, select="best", eval_every=1, steps=5, data={"train_rows": 48})
    train_pack(pack_of(spec), StopFlag())
    run = stopped_and_resumed(spec, step)
    assert_same(run)
    losses = [row["val_loss"] for row in history(run)]
    assert losses.index(min(losses)) not in (0, 4), "the best is at an end, so keeping it proves nothing"


def test_a_stop_inside_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop_module, "EVAL_BATCH_SIZE", 4)
    spec = run_spec("lora", data={"train_rows": 48})
    train_pack(pack_of(spec), StopFlag())

    class StopsInEvaluation(StopFlag):
        polls = 0

        def check(self, doing: str) -> None:
            self.polls += "at step 3" in doing
            if self.polls == 2:  # the second of four batches of the evaluation after step 3
                self.received = "SIGTERM"
            super().check(doing)

    pack = pack_of(spec, runs=Path("second"), work=Path("work2"))
    with pytest.raises(Preempted, match="at step 3 of 6"):
        train_pack(pack, StopsInEvaluation())
    train_pack(pack, StopFlag())
    assert_same(pack.members[0].run)


def test_losses_that_wait_on_the_device_are_saved_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint between two looks at the loss leaves no gap in the history."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pack_module, "CHECKPOINT_EVERY_S", 0.0)
    spec = run_spec("lora", epochs=2)
    run = stopped_and_resumed(spec, 1)
    assert all(row["train_loss"] is not None for row in history(run, Path("second")))
