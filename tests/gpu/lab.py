"""What the tests on a GPU share: the device, runs on it and on the CPU, and how they are compared."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lowrank.cards import model_card
from lowrank.data.fetch import fetch
from lowrank.evaluate import pack as evaluating
from lowrank.methods.chain import Chain
from lowrank.run_folder import RUNS
from lowrank.signals import StopFlag
from lowrank.spec import RunSpec
from lowrank.train import together
from lowrank.train.pack import train_pack
from tests.tolerances import Tolerance
from tests.training_lab import history, member, pack_of, weights

DEVICE = torch.device(os.environ.get("LOWRANK_TEST_DEVICE", "cuda"))
"""`LOWRANK_TEST_DEVICE=cpu` rehearses on a machine without a GPU what does not need one."""

CPU = torch.device("cpu")

CUDA_DOUBLE = Tolerance(
    1e-7, 1e-9, "losses and weights in double (1e-16) of other kernels, through eigenvectors and Adam's division"
)

CUDA_SINGLE = Tolerance(
    1e-3,
    1e-4,
    "losses in float32 (6e-8) of other kernels; what is pruned, projected or chosen may turn on rounding",
)

CUDA_HALF = Tolerance(5e-2, 2e-2, "losses under bfloat16 autocast (4e-3), through a few layers and steps")

CUDA_PACK = Tolerance(1e-4, 1e-5, "losses in float32 of a member in a stack and alone, whose products run in others")

CUDA_BF16_PACK = Tolerance(2e-2, 1e-2, "as CUDA_PACK, under bfloat16 autocast (4e-3 a rounding)")


@contextlib.contextmanager
def computing_on(device: torch.device) -> Iterator[None]:
    """Runs train and are scored there."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (together, evaluating):
            patch.setattr(module, "compute_device", lambda: device)
        yield


@contextlib.contextmanager
def in_double() -> Iterator[None]:
    """Attached models are of doubles, where only a fault is larger than rounding."""
    inner = Chain.attach

    def attach(chain: Chain, model: Any, seed: int = 0) -> Chain:
        inner(chain, model, seed)
        model.double()
        return chain

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chain, "attach", attach)
        yield


def train(*specs: RunSpec, device: torch.device = DEVICE, folder: str = ".") -> Path:
    """Trains runs, together where that can be; returns where they lie."""
    runs = Path(folder) / RUNS
    for spec in specs:
        fetch(model_card(spec.model.card))  # `prepared` does so only for the first model that reads its data
    with computing_on(device):
        train_pack(pack_of(*specs, runs=runs, work=Path(folder) / "work"), StopFlag())
    return runs


def losses(spec: RunSpec, runs: Path) -> Tensor:
    """Of training and validation, in order, in double."""
    rows = history(member(spec).run, runs)
    found = [row[name] for row in rows for name in ("train_loss", "val_loss") if row[name] is not None]
    return torch.tensor(found, dtype=torch.float64)


def assert_like(spec: RunSpec, ours: Path, theirs: Path, tolerance: Tolerance, *, weigh: bool = False) -> None:
    """The losses of a run in two folders, and its weights."""
    assert len(losses(spec, ours)) > 4
    tolerance.check(losses(spec, ours), losses(spec, theirs))
    if weigh:
        found, expected = (weights(member(spec).run, runs) for runs in (ours, theirs))
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            tolerance.check(found[name], tensor)


cuda_alone = pytest.mark.cuda_alone
"""Of what has no meaning on a CPU, not even as a rehearsal."""
