"""Which runs train together, and what the plan says of it."""

from __future__ import annotations

from typing import Any

import pytest

from lowrank.train import stacks as module
from lowrank.train.stacks import members_at_once, stacks, told
from tests.training_lab import run_spec


def specs(*ranks: int, chain: str = "lora", **settings: Any) -> list[Any]:
    return [
        run_spec([{"part": chain, "rank": rank}], dropout=0, lr=1e-3 / (n + 1), **settings)
        for n, rank in enumerate(ranks)
    ]


def cut(found: list[Any]) -> list[list[int]]:
    return [list(stack.members) for stack in found]


def test_runs_of_like_rank_are_one_stack() -> None:
    """Ranks are filled up to the largest, so 2 and 16 would compute eight times what 2 needs."""
    assert cut(stacks(specs(2, 16, 8, 4, 2), 4)) == [[0, 2, 3, 4], [1]]


def test_a_random_base_is_shared_by_runs_of_one_seed() -> None:
    assert cut(stacks([*specs(4, 4), *specs(4, 4, seed=1)], 4)) == [[0, 1], [2, 3]]


def test_what_members_may_not_differ_in_keeps_them_apart() -> None:
    runs = [*specs(4), *specs(4, batch_size=8), *specs(4, betas=(0.8, 0.9)), *specs(4, chain="hira")]
    assert cut(stacks(runs, 4)) == [[0], [1], [2], [3]]


def test_stacks_are_even_and_no_larger_than_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    assert cut(stacks(specs(4, 4, 4, 4), 4)) == [[0, 1], [2, 3]]


@pytest.mark.parametrize(("rows", "tokens", "expected"), [(8, 16, 8), (16, 32, 2), (32, 128, 1)])
def test_a_step_that_is_large_alone_stays_alone(rows: int, tokens: int, expected: int) -> None:
    assert members_at_once(run_spec("lora", batch_size=rows, data={"max_length": tokens})) == expected


REASONS = {
    "full": (run_spec("full", dropout=0), "full has no form for several members at once"),
    "dropout": (run_spec("lora"), "the base has dropout"),
    "untrained": (run_spec("lora", steps=0, dropout=0), "no steps"),
    "watched": (run_spec("lora", observe={"ranks": {"every": 2}}, dropout=0), "observers look at one run: ranks"),
    "large": (run_spec("lora", dropout=0, data={"max_length": 2048}), "a step is large enough alone"),
}


@pytest.mark.parametrize(("spec", "why"), REASONS.values(), ids=REASONS.keys())
def test_the_plan_says_why_runs_are_not_stacked(spec: Any, why: str) -> None:
    other = spec.model_copy(update={"train": spec.train.model_copy(update={"lr": 1.0})})
    assert told([spec, other], 4).startswith(f"2 one after another ({why}")
    assert told(specs(4, 4, 16 * 4), 4) == "2 together, 1 one after another (a step is large enough alone)"
