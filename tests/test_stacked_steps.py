"""What a step of a stack does on the device: nothing waits for it, nothing loops over members, each step is alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from lowrank.data.loader import open_splits
from lowrank.tasks import task
from lowrank.train.stacked_loop import StackedLoop
from lowrank.train.together import _stack
from tests.training_lab import pack_of, run_spec

LORA = {"part": "lora", "rank": 4}
CHAINS: dict[str, list[Any]] = {
    "lora": [LORA],
    "hira": [{"part": "hira", "rank": 4}],
    "nf4": ["nf4", LORA],
    "probe": ["linear_probe"],
    "prune": [LORA, {"part": "prune", "start": 50, "every": 50, "l1_lambda": 1e-3}],
    "velora": [LORA, {"part": "velora", "num_groups": 4}],
    "lean": [LORA, "lean"],
}

READS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique"}
"""Operations whose result the host must have before it goes on."""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Calls(TorchDispatchMode):
    """Every operation with what it is told besides tensors; reading a value on the host is one too."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, str]] = []
        self.reads: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name.startswith("_record_function"):  # a profiler's
            return func(*args, **(kwargs or {}))
        leaves = tree_flatten((args, kwargs or {}))[0]
        self.made.append((name, str([leaf for leaf in leaves if not isinstance(leaf, Tensor)])))
        by_mask = name in {"index", "index_put", "index_put_"} and any(
            isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in leaves[1:]
        )
        if name in READS or by_mask:
            self.reads.append(name)
        return func(*args, **(kwargs or {}))


def stacked(chain: list[Any], members: int, **train: Any) -> StackedLoop:
    specs = [run_spec(chain, lr=1e-3 / (n + 1), dropout=0, steps=8, **train) for n in range(members)]
    pack = pack_of(*specs)
    splits = open_splits(pack.prepared, specs[0].data, specs[0].task)
    stack = _stack(pack.members, [None] * members, 4, torch.device("cpu"))
    nothing = [None] * members
    return StackedLoop(
        stack, task("classification"), specs, splits["train"], splits["validation"], torch.device("cpu"), nothing
    )


def step(loop: StackedLoop, number: int, hidden: int = 0) -> Calls:
    """What a step does once its batch is there, which the host makes; its mask hides so many tokens of each row."""
    loop.model.train()
    batches, units = loop.gather(number)
    for batch in batches:
        batch["attention_mask"][:, batch["attention_mask"].shape[1] - hidden :] = 0  # type: ignore[index]
    with pytest.MonkeyPatch.context() as patch, Calls() as calls:
        patch.setattr(loop, "gather", lambda step: (batches, units))
        patch.setattr(Tensor, "tolist", lambda self: pytest.fail("a step reads a tensor on the host"))
        patch.setattr(Tensor, "numpy", lambda self: pytest.fail("a step reads a tensor on the host"))
        loop.one_step(number)
    return calls


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_the_host_reads_nothing_but_whether_a_mask_hides_something(chain: list[Any]) -> None:
    """Once before the batch is sent; then transformers asks the same of a mask that it is given."""
    loop = stacked(chain, 3, clip_norm=1.0, weight_decay=0.1)
    step(loop, 0)
    plain, padded = step(loop, 1), step(loop, 2, hidden=3)
    assert plain.reads == ["_local_scalar_dense"]
    assert [name for name, _ in plain.made][:2] == ["all", "_local_scalar_dense"]
    assert padded.reads == ["_local_scalar_dense"] * 2


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_no_operation_is_done_once_for_each_member(chain: list[Any]) -> None:
    found = []
    for members in (2, 5):
        loop = stacked(chain, members, clip_norm=1.0)
        step(loop, 0)
        found.append([name for name, _ in step(loop, 1).made])
    assert found[0] == found[1]


def test_an_update_is_the_same_calls_at_each_step() -> None:
    """As a CUDA graph asks for: what differs from step to step is read on the device. No GPU has run this."""
    loop = stacked([LORA], 3, clip_norm=1.0, weight_decay=0.1, schedule="cosine", warmup_steps=2)
    updates = []
    for _ in range(3):
        for parameter in loop.stack.trainable().values():
            parameter.grad = torch.ones_like(parameter)
        with Calls() as calls:
            loop.adamw.step()
        updates.append(calls.made)
    assert updates[0] == updates[1] == updates[2]
    assert loop.adamw.taken.item() == 3
