"""What a benchmark finds: arms, goals, and the machine they were measured on."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from lowrank.strict import Strict


class Spread(Strict):
    """A median with its quartiles."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * [*values]
        return cls(median=median, low=low, high=high, rounds=len(values))

    @classmethod
    def exact(cls, value: float) -> Spread:
        """Something that was counted, and is the same in each round."""
        return cls(median=value, low=value, high=value, rounds=1)

    def scaled(self, factor: float) -> Spread:
        values = {key: getattr(self, key) * factor for key in ("median", "low", "high")}
        return Spread(rounds=self.rounds, **values)


class ArmResult(Strict):
    """One arm: time of a step, and bytes where they were counted."""

    name: str
    step_ms: Spread | None = None
    saved_bytes: int | None = None
    """What autograd holds at the end of the forward pass, without parameters."""
    state_bytes: int | None = None
    """What the optimizer keeps."""
    peak_bytes: int | None = None
    """Growth of the resident memory over the model, in a process of its own; on a GPU, of what is allocated."""


class Goal(Strict):
    """One goal: a quotient and what it may be at most."""

    id: str
    what: str
    measured: Spread
    at_most: float
    note: str = ""
    """Why it is missed, in figures; shown only then."""

    @property
    def met(self) -> bool:
        """Judged by the median, as printed: to three digits after the point."""
        return round(self.measured.median, 3) <= self.at_most


class Section(Strict):
    """Arms that were measured in turn, and the goals that they answer."""

    title: str
    setting: str
    arms: tuple[ArmResult, ...] = ()
    goals: tuple[Goal, ...] = ()
    again: str = ""
    """When and at which commit, where it was measured again after the rest."""


class Report(Strict):
    """One run of the benchmark."""

    date: str
    commit: str | None
    quick: bool
    cpu: str
    cores: int
    gpu: str | None = None
    """That everything was measured on; None is the CPU."""
    bf16: str | None
    """The instructions with which the CPU multiplies bfloat16; without any, nothing is measured in it."""
    load: tuple[float, float]
    """Mean number of busy processes on the machine, before and after."""
    cpu_s: float
    versions: dict[str, str]
    sections: tuple[Section, ...]
