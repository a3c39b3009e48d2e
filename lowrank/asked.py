"""A question about a run, for caches: many runs ask the same."""

from __future__ import annotations

from dataclasses import dataclass, field

from lowrank.spec import RunSpec


@dataclass(frozen=True)
class Asked:
    """A question that a cache knows again by its text.

    Attributes:
        text: all that decides the answer.
        spec: a run that asks it.
    """

    text: str
    spec: RunSpec = field(compare=False)
