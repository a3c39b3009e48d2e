"""Which runs of a pack train together: those that differ in no more than members of a stack may, as many as pay."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from lowrank.asked import answer, shape
from lowrank.cards import data_card, model_card
from lowrank.errors import ConfigError
from lowrank.files import canonical_json
from lowrank.footprint import GB, Footprint, footprint, tokens_a_row
from lowrank.methods.chain import Chain
from lowrank.methods.stacked_chain import StackedChain
from lowrank.models.load import skeleton
from lowrank.registry import part
from lowrank.site import read_site
from lowrank.spec import RunSpec

VARIES = frozenset({"lr", "weight_decay", "schedule", "warmup_steps", "min_lr_fraction", "cycle_steps", "clip_norm"})
"""Settings of the loop in which members of a stack may differ."""

TOKENS_AT_ONCE = 1024
"""A step of so many tokens, all members together, keeps a CPU core busy; more only leave its caches."""

MOST = 32
"""Members of a stack."""

RANK_FACTOR = 4
"""Ranks are filled up to the largest of a stack, which is at most so many times the smallest."""


class Room(NamedTuple):
    """What a job is given."""

    memory: int
    """Bytes: of a GPU where the job has one, else of the machine."""
    gpu: bool = False
    processes: int = 1
    """How many train each run together."""

    @classmethod
    def of(cls, mem_mb: int, gpus: int, processes: int) -> Room:
        """That of a job which asks for so much; a GPU is as large as the site says."""
        memory = read_site().gpu.memory_gb * GB if gpus else mem_mb * 2**20
        return cls(memory, gpu=gpus > 0, processes=processes)


@dataclass(frozen=True)
class Stack:
    """Runs that train together, or one that trains alone.

    Attributes:
        members: places in the sequence that was asked about.
        why: why it holds so many, or why its run trains alone.
    """

    members: tuple[int, ...]
    why: str


def planned(specs: Mapping[str, RunSpec], room: Room) -> list[dict[str, Any]]:
    """The stacks of a pack, in the form of the plan: `members`, their ids, and `why`."""
    runs, own = list(specs), list(specs.values())
    found = stacks(own, len(data_card(own[0].data.card).labels), room)
    return [{"members": [runs[place] for place in stack.members], "why": stack.why} for stack in found]


def stacks(specs: Sequence[RunSpec], labels: int, room: Room) -> list[Stack]:
    """Cuts runs into stacks that fit into memory and are never slower than their runs one after another.

    Args:
        specs: of the runs.
        labels: classes of their data.
        room: of the job that trains them.
    """
    if room.processes > 1:
        return [Stack((place,), f"{room.processes} processes train each") for place in range(len(specs))]
    alike: dict[str, list[int]] = {}
    for index, spec in enumerate(specs):
        alike.setdefault(_shared(spec), []).append(index)
    found: list[Stack] = []
    for places in alike.values():
        why = "nothing to share" if len(places) == 1 else refusal(specs[places[0]], labels)
        if why is not None:
            found += [Stack((place,), why) for place in places]
            continue
        for own in _of_like_rank(places, specs):
            found += _cut(own, specs[own[-1]], labels, room)
    return sorted(found, key=lambda stack: stack.members)


def refusal(spec: RunSpec, labels: int) -> str | None:
    """Why runs like this one cannot be stacked; None where they can. Tried on a model without numbers."""
    if (spec.train.steps or spec.train.epochs or 0) == 0:
        return "no steps"
    if spec.train.observe:
        return f"observers look at one run: {', '.join(spec.train.observe)}"
    question = {"asked": "stack", **shape(spec, labels), "chain": spec.dump()["chain"]}
    said: str | None = answer(question, functools.partial(_refusal, spec, labels))
    return said


def _refusal(spec: RunSpec, labels: int) -> str | None:
    chains = [Chain.build(spec.chain).attach(skeleton(spec.model, spec.task, labels)) for _ in range(2)]
    try:
        StackedChain(chains[0], chains[1:])
    except ConfigError as error:
        return str(error)
    return None


def _shared(spec: RunSpec) -> str:
    """What runs of one stack have in common, as text."""
    plain = spec.dump()
    chain = [
        {key: value for key, value in entry.items() if key not in part(entry["part"]).varies}
        for entry in plain["chain"]
    ]
    train = {key: value for key, value in plain["train"].items() if key not in VARIES}
    # A random base is drawn from the seed, so two seeds have no base in common.
    seed = spec.seed if model_card(spec.model.card).init == "random" else None
    return canonical_json({**plain, "chain": chain, "train": train, "seed": seed})


def _ranks(spec: RunSpec) -> list[int]:
    return [rank for options in spec.chain if (rank := getattr(options, "rank", None)) is not None]


def _of_like_rank(places: list[int], specs: Sequence[RunSpec]) -> list[list[int]]:
    """The same places by rank, the largest last, cut where filling up would cost more than it saves."""
    groups: list[list[int]] = []
    for place in sorted(places, key=lambda place: _ranks(specs[place])):
        ranks = zip(_ranks(specs[place]), _ranks(specs[groups[-1][0]]) if groups else (), strict=False)
        if not groups or any(rank > RANK_FACTOR * smallest for rank, smallest in ranks):
            groups.append([])
        groups[-1].append(place)
    return groups


def _cut(places: list[int], largest: RunSpec, labels: int, room: Room) -> list[Stack]:
    """Stacks of runs that can be stacked, as large as pays and fits, and as even as can be."""
    if len(places) == 1:
        return [Stack((places[0],), "no other of like rank")]
    size, why = members_at_once(largest, labels, room)
    count = -(-len(places) // size)
    bounds = [len(places) * index // count for index in range(count + 1)]
    chunks = [tuple(sorted(places[start:end])) for start, end in itertools.pairwise(bounds)]
    if size == 1:
        return [Stack(chunk, why) for chunk in chunks]
    most = max(map(len, chunks))
    needed = f"{_foot(largest, labels).together(most) / GB:.1f} of {room.memory / GB:.1f} GB predicted"
    limit = f", at most {size}: {why}" if count > 1 else ""
    return [Stack(chunk, f"{needed}{limit}" if len(chunk) > 1 else f"one is left over{limit}") for chunk in chunks]


def members_at_once(spec: RunSpec, labels: int, room: Room) -> tuple[int, str]:
    """How many runs like this one are best trained together, and what sets that limit.

    On a CPU a step that keeps a core busy gains nothing from company, so its tokens are bounded; on a GPU only memory
    is. Both as `docs/decisions.md` has it.
    """
    limits = [(MOST, f"{MOST} are the most")]
    if not room.gpu:
        tokens = (spec.train.micro_batch_size or spec.train.batch_size) * tokens_a_row(spec)
        limits.append((by_tokens(tokens), f"a step of {tokens} tokens each, {TOKENS_AT_ONCE} keep a core busy"))
    if min(limits)[0] > 1:  # else what it would need does not matter
        foot = _foot(spec, labels)
        fits = foot.members(room.memory)
        limits.append((fits, f"{foot.member / GB:.2f} GB each on {foot.shared / GB:.2f} GB"))
    size, why = min(limits)
    return max(1, size), why


def by_tokens(tokens: int) -> int:
    """How many runs whose steps have so many tokens a CPU trains together; 1 where no more than two would fit.

    Two of a third of the tokens or more gain nothing for sure: `benchmarks/results/sweep.md`.
    """
    fit = TOKENS_AT_ONCE // tokens
    return min(MOST, fit) if fit > 2 else 1


def _foot(spec: RunSpec, labels: int) -> Footprint:
    train = spec.train
    sizes = [train.micro_batch_size or train.batch_size, train.precision, tokens_a_row(spec), spec.data.image_size]
    question = {"asked": "footprint", **shape(spec, labels), "chain": spec.dump()["chain"], "sizes": sizes}
    return Footprint(**answer(question, lambda: asdict(footprint(spec, labels))))
