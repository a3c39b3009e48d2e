"""What the sweep's benchmark finds."""

from __future__ import annotations

from typing import Any

from benchmarks.records import Spread
from lowrank.stacks import by_tokens
from lowrank.strict import Strict


class Way(Strict):
    """One way through a sweep."""

    name: str
    runs: int
    """That were trained; the peer's are measured on some of the points."""
    cpu_s: float
    """CPU seconds a run, start-up included."""
    peak: int
    """Bytes: the largest resident memory of a process."""


class WholeSweep(Strict):
    """One shape."""

    name: str
    shape: dict[str, Any]
    ways: tuple[Way, ...]
    floor_s: float
    """A run's operations at the machine's measured rate."""
    flops_a_second: float


class Growth(Strict):
    """A step at one place of an axis."""

    axis: str
    value: int
    members: int
    stack_ms: Spread
    over_alone: Spread
    """Members' steps a second over those of our own runs alone."""
    over_peer: Spread
    """The same over PEFT's."""
    saved_bytes: int
    """For the backward pass, a member."""


class Choice(Strict):
    """Members together beside the same one after another."""

    layers: int
    width: int
    tokens: int
    """Of a member's step."""
    members: int
    over_alone: Spread
    """Steps a second together over those one after another."""

    @property
    def chosen(self) -> int:
        """How many the planner trains together here, of enough runs and with memory enough."""
        return by_tokens(self.tokens)


class Threads(Strict):
    """One way to put packs on two cores."""

    shape: str
    processes: int
    threads: int
    """Of each process."""
    members: int
    """Of each process's stack."""
    wall_s: Spread
    """Until all processes have taken their steps; other users of the machine lengthen it."""
    busy_s: Spread
    """CPU seconds of the calling thread of the slowest process: the wall time of a machine that nobody else uses."""


class Taken(Strict):
    """When a part was measured."""

    date: str
    commit: str | None
    cpu_s: float | None
    """None where it was not recorded."""
    load: tuple[float, ...]
    """Mean number of busy processes on the machine: before, and after where that was recorded."""


class Sweep(Strict):
    """All parts of the benchmark, on one machine."""

    cpu: str
    cores: int
    versions: dict[str, str]
    taken: dict[str, Taken]
    """Part -> when it was measured."""
    sweeps: tuple[WholeSweep, ...] = ()
    growth: tuple[Growth, ...] = ()
    choices: tuple[Choice, ...] = ()
    threads: tuple[Threads, ...] = ()
