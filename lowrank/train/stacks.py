"""Which runs of a pack train together: those that differ in no more than members of a stack may."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from lowrank.cards import data_card, model_card
from lowrank.errors import ConfigError
from lowrank.files import canonical_json
from lowrank.methods.chain import Chain
from lowrank.methods.stacked_chain import StackedChain
from lowrank.models.load import skeleton
from lowrank.registry import part
from lowrank.spec import RunSpec

VARIES = frozenset({"lr", "weight_decay", "schedule", "warmup_steps", "min_lr_fraction", "cycle_steps", "clip_norm"})
"""Settings of the loop in which members of a stack may differ."""

TOKENS_AT_ONCE = 1024
"""A step of so many tokens, all members together, keeps a CPU core busy; more only leave its caches."""

MOST = 32
"""Members of a stack."""

RANK_FACTOR = 4
"""Ranks are filled up to the largest of a stack, which is at most so many times the smallest."""


@dataclass(frozen=True)
class Stack:
    """Runs that train together, or one that trains alone.

    Attributes:
        members: places in the sequence that was asked about.
        why: why its runs train one after another; None where they can train together.
    """

    members: tuple[int, ...]
    why: str | None = None


def stacks(specs: Sequence[RunSpec], labels: int) -> list[Stack]:
    """Cuts runs into stacks, so that training them together is never slower than one after another.

    Args:
        specs: of the runs.
        labels: classes of their data.
    """
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
            found += [Stack(tuple(sorted(chunk))) for chunk in _even(own, members_at_once(specs[places[0]]))]
    return sorted(found, key=lambda stack: stack.members)


def told(specs: Sequence[RunSpec], labels: int) -> str:
    """How runs will be trained, for a person: `14 + 7 together`, `3 one after another (why)`."""
    found = stacks(specs, labels)
    sizes = [len(stack.members) for stack in found]
    together = [str(size) for size in sizes if size > 1]
    parts = [f"{' + '.join(together)} together"] if together else []
    reasons = {stack.why or "a step is large enough alone" for stack in found if len(stack.members) == 1}
    if reasons:
        parts.append(f"{sizes.count(1)} one after another ({'; '.join(sorted(reasons))})")
    return ", ".join(parts)


def refusal(spec: RunSpec, labels: int) -> str | None:
    """Why runs like this one cannot be stacked; None where they can. Tried on a model without numbers."""
    if (spec.train.steps or spec.train.epochs or 0) == 0:
        return "no steps"
    if spec.train.observe:
        return f"observers look at one run: {', '.join(spec.train.observe)}"
    plain = spec.dump()
    return _refusal(canonical_json([plain["model"], plain["chain"], spec.task]), _Asked(spec, labels))


class _Asked:
    """An argument that the cache does not compare: the question's text says it all."""

    def __init__(self, spec: RunSpec, labels: int) -> None:
        self.spec, self.labels = spec, labels

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Asked) and other.labels == self.labels

    def __hash__(self) -> int:
        return hash(self.labels)


@functools.lru_cache(maxsize=256)
def _refusal(question: str, asked: _Asked) -> str | None:
    spec = asked.spec
    chains = [Chain.build(spec.chain).attach(skeleton(spec.model, spec.task, asked.labels)) for _ in range(2)]
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


def _even(places: list[int], size: int) -> list[list[int]]:
    """Chunks of at most `size`, as even as can be, so that none is left with one."""
    count = -(-len(places) // size)
    bounds = [len(places) * index // count for index in range(count + 1)]
    return [places[start:end] for start, end in itertools.pairwise(bounds)]


def _of_like_rank(places: list[int], specs: Sequence[RunSpec]) -> list[list[int]]:
    """The same places by rank, cut where filling up would cost more than it saves."""
    groups: list[list[int]] = []
    for place in sorted(places, key=lambda place: _ranks(specs[place])):
        ranks = zip(_ranks(specs[place]), _ranks(specs[groups[-1][0]]) if groups else (), strict=False)
        if not groups or any(rank > RANK_FACTOR * smallest for rank, smallest in ranks):
            groups.append([])
        groups[-1].append(place)
    return groups


def members_at_once(spec: RunSpec) -> int:
    """How many runs like this one are best trained together: 1 where a step is large enough by itself."""
    rows = spec.train.micro_batch_size or spec.train.batch_size
    return max(1, min(MOST, TOKENS_AT_ONCE // (rows * _tokens_a_row(spec))))


def _tokens_a_row(spec: RunSpec) -> int:
    """At most."""
    image = data_card(spec.data.card).image
    if image is None:
        return spec.data.max_length
    height, width = (spec.data.image_size or side for side in (image.height, image.width))
    patch = int(str(model_card(spec.model.card).config.get("patch_size", 16)))
    return (height // patch) * (width // patch) + 1
