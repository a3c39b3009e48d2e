"""Which runs train together, and what the plan says of it."""

from __future__ import annotations

from typing import Any

import pytest

from lowrank import stacks as module
from lowrank.footprint import GB, Footprint, footprint
from lowrank.plan import told
from lowrank.stacks import Room, members_at_once, stacks
from tests.training_lab import ROOM, run_spec


def specs(*ranks: int, chain: str = "lora", **settings: Any) -> list[Any]:
    return [
        run_spec([{"part": chain, "rank": rank}], dropout=0, lr=1e-3 / (n + 1), **settings)
        for n, rank in enumerate(ranks)
    ]


def cut(runs: list[Any], room: Room = ROOM) -> list[list[int]]:
    return [list(stack.members) for stack in stacks(runs, 4, room)]


def words(runs: list[Any], room: Room = ROOM) -> str:
    return told([(len(stack.members), stack.why) for stack in stacks(runs, 4, room)])


def test_runs_of_like_rank_are_one_stack() -> None:
    """Ranks are filled up to the largest, so 2 and 16 would compute eight times what 2 needs."""
    assert cut(specs(2, 16, 8, 4, 2)) == [[0, 2, 3, 4], [1]]


def test_a_random_base_is_shared_by_runs_of_one_seed() -> None:
    assert cut([*specs(4, 4), *specs(4, 4, seed=1)]) == [[0, 1], [2, 3]]


def test_what_members_may_not_differ_in_keeps_them_apart() -> None:
    runs = [*specs(4), *specs(4, batch_size=8), *specs(4, betas=(0.8, 0.9)), *specs(4, chain="hira")]
    assert cut(runs) == [[0], [1], [2], [3]]


def test_stacks_are_even_and_no_larger_than_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    assert cut(specs(4, 4, 4, 4)) == [[0, 1], [2, 3]]


@pytest.mark.parametrize(("rows", "tokens", "expected"), [(8, 16, 8), (16, 21, 3), (16, 32, 1), (32, 128, 1)])
def test_a_step_that_is_large_alone_stays_alone_on_a_cpu(rows: int, tokens: int, expected: int) -> None:
    spec = run_spec("lora", dropout=0, batch_size=rows, data={"max_length": tokens})
    assert members_at_once(spec, 4, ROOM)[0] == expected
    assert members_at_once(spec, 4, Room(10**12, gpu=True))[0] == module.MOST


def test_a_stack_fits_into_the_memory_of_its_job() -> None:
    """On a CPU and on a GPU; more where there is more, and one run alone where not even two fit."""
    runs = specs(*[8] * 8, batch_size=8)
    foot = footprint(runs[0], 4)
    assert foot.member > 0
    for gpu in (False, True):
        for members in (1, 2, 4, 8):
            room = Room(foot.together(members) + foot.member // 2, gpu)
            found = stacks(runs, 4, room)
            assert max(len(stack.members) for stack in found) == members
            if members > 1:
                assert f"of {room.memory / GB:.1f} GB predicted" in found[0].why
    assert "2 one after another (0.00 GB each on" in words(runs[:2], Room(1))


def test_a_larger_rank_and_a_longer_text_need_more() -> None:
    def of(rank: int, **settings: Any) -> Footprint:
        return footprint(specs(rank, **settings)[0], 4)

    assert of(8).member > of(2).member
    assert of(8, data={"max_length": 32}).member > of(8).member
    assert of(8, micro_batch_size=4).member < of(8).member


REASONS = {
    "full": (run_spec("full", dropout=0), "full has no form for several members at once"),
    "dropout": (run_spec("lora"), "the base has dropout"),
    "untrained": (run_spec("lora", steps=0, dropout=0), "no steps"),
    "watched": (run_spec("lora", observe={"ranks": {"every": 2}}, dropout=0), "observers look at one run: ranks"),
    "large": (run_spec("lora", dropout=0, data={"max_length": 2048}), "a step of 32768 tokens each, 1024 keep a core"),
}


@pytest.mark.parametrize(("spec", "why"), REASONS.values(), ids=REASONS.keys())
def test_the_plan_says_why_runs_are_not_stacked(spec: Any, why: str) -> None:
    other = spec.model_copy(update={"train": spec.train.model_copy(update={"lr": 1.0})})
    assert words([spec, other]).startswith(f"2 one after another ({why}")


def test_the_plan_says_how_runs_are_stacked_and_why_not_more() -> None:
    assert words(specs(4, 4, 16 * 4)) == (
        "2 together (0.5 of 10.0 GB predicted), 1 one after another (no other of like rank)"
    )
    assert words(specs(*[4] * 5)) == (
        "2 + 3 together (0.5 of 10.0 GB predicted, at most 4: a step of 256 tokens each, 1024 keep a core busy)"
    )
