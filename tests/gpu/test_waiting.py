"""A step gives the device its work and waits for nothing: where one does wait, the place is named here, with why."""

from __future__ import annotations

import importlib.util
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank.compositions import small
from lowrank.spec import RunSpec
from lowrank.train.loop import Loop
from tests.gpu.lab import cuda_alone, train
from tests.gpu.test_chains import ALL, spec_of
from tests.gpu.test_stacks import STACKS, specs_of

pytestmark = cuda_alone

WAITS: dict[str, tuple[str, str]] = {
    "masking_utils.py": ("", "transformers reads a mask, or positions, to find out whether it needs a mask at all"),
    "sparse_tokens.py": ("contextual_sparsity", "how many tokens are context decides the sizes of products"),
    "lean_modules.py": ("full", "norms that train are looked at before each step, whether they can be inverted"),
    "galore_projector.py": ("galore", "a new basis: eigenvectors are found with a check of their convergence"),
    "relora.py": ("relora", "at a merge the factors are drawn on the CPU, so that they are the same on any device"),
    "velora.py": ("velora", "with init svd, the eigenvectors of the first batch"),
    "optimizer.py": ("paged_adamw", "bitsandbytes waits after each tensor, whose state may be moving"),
    "tasks.py": ("causal_lm", "which tokens are predicted decides a size"),
}
"""File -> the part (or task) that may wait there, and why it must."""
FOUND = [importlib.util.find_spec(package) for package in ("lowrank", "transformers", "bitsandbytes")]
ROOTS = [Path(spec.origin).parent for spec in FOUND if spec is not None and spec.origin is not None]


def place() -> str:
    """The innermost file of the stack that is ours or a package's that we build on, torch left out.

    What torch itself does in the backward pass is `backward`; what our functions do there is theirs.
    """
    frames = [Path(frame.filename) for frame in traceback.extract_stack()]
    if any(frame.parts[-2:] == ("autograd", "graph.py") for frame in frames[-4:]):
        return "backward"
    known = [frame.name for frame in frames if any(root in frame.parents for root in ROOTS)]
    return known[-1] if known else frames[-1].name


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Where steps wait for the device, from the third step of each run on."""
    seen: Counter[str] = Counter()
    inner: Callable[[Any, int], Any] = Loop.one_step

    def note(message: Any, *rest: Any) -> None:
        if "called a synchronizing" in str(message):
            seen[place()] += 1

    def one_step(loop: Loop, step: int) -> Any:
        if step < 2:
            return inner(loop, step)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            return inner(loop, step)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Loop, "one_step", one_step)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", note)
        yield seen


def assert_known(seen: Counter[str], asked: str) -> None:
    print(f"{asked}: {dict(seen)}")
    unknown = {where: times for where, times in seen.items() if where not in WAITS or WAITS[where][0] not in asked}
    assert not unknown, f"{asked} waits for the device at {unknown}"


def test_a_wait_is_seen(waits: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the tests below can fail."""
    inner = Loop.losses

    def losses(loop: Loop, *told: Any) -> Any:
        assert loop.trainable[0].sum().item() < 1e9
        return inner(loop, *told)

    monkeypatch.setattr(Loop, "losses", losses)
    train(spec_of("lora"))
    assert waits["loop.py"] > 0


@pytest.mark.parametrize("name", ALL)
def test_a_step_of_one_run(name: str, waits: Counter[str]) -> None:
    train(spec_of(ALL[name]))
    assert_known(waits, f"{name} {ALL[name]}")


@pytest.mark.parametrize("name", STACKS)
def test_a_step_of_a_stack(name: str, waits: Counter[str]) -> None:
    train(*specs_of(name))
    assert_known(waits, f"{name} {STACKS[name][0]}")


@pytest.mark.parametrize("chain", ["full", "full+galore", "lora", "lora+velora"])
def test_a_step_of_pre_training(chain: str, waits: Counter[str]) -> None:
    spec = RunSpec.model_validate(
        {
            "task": "causal_lm",
            "model": {"card": "smoke_gpt"},
            "data": {"card": "smoke_text", "max_length": 16, "sample": "blocks", "validation_rows": 8, "test_rows": 8},
            "chain": [small(part) for part in chain.split("+")],
            "train": {"lr": 1e-3, "steps": 6, "batch_size": 4, "eval_every": 3, "clip_norm": 1.0},
        }
    )
    train(spec)
    assert_known(waits - Counter({"backward": waits["backward"]}), f"{chain} causal_lm")
