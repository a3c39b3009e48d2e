"""Timing that survives a busy machine: arms in turn, ratios within a round; CPU time of one thread, or a GPU's."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping

from benchmarks.device import now, steps_at_a_time
from benchmarks.records import Spread

Step = Callable[[], object]


class Times:
    """Seconds of a step of each arm, one for each round."""

    def __init__(self, seconds: Mapping[str, list[float]]) -> None:
        self.seconds = seconds

    def step_ms(self, arm: str) -> Spread:
        return Spread.of([1e3 * value for value in self.seconds[arm]])

    def ratio(self, arm: str, other: str) -> Spread:
        """Median of the ratios of one round, which a slower machine in that round leaves as they are."""
        return Spread.of([a / b for a, b in zip(self.seconds[arm], self.seconds[other], strict=True)])


def alternate(
    arms: Mapping[str, Step],
    rounds: int,
    *,
    warm: bool = False,
    prepare: Mapping[str, Step] | None = None,
    one_by_one: bool = False,
) -> Times:
    """Runs each arm once a round, in an order that is turned around from round to round.

    Args:
        arms: name -> one step.
        rounds: that count.
        warm: each has run already; otherwise one more round comes first.
        prepare: name -> what comes before each step and is not timed.
        one_by_one: each step is timed by itself, also on a GPU, as where something comes before it.

    Returns:
        On a CPU `time.process_time`, which leaves out what other processes did meanwhile; the backward pass runs in
        the calling thread, so one thread is all there is. On a GPU the wall time of several steps, divided.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    order, steps = list(arms), 1 if prepare or one_by_one else steps_at_a_time()
    gc.collect()
    gc.disable()  # a collection would fall into one arm or another
    try:
        for number in range(warm, rounds + 1):
            for name in order:
                if prepare:
                    prepare[name]()
                began = now()
                for _ in range(steps):
                    arms[name]()
                if number:
                    seconds[name].append((now() - began) / steps)
            order.reverse()
    finally:
        gc.enable()
    return Times(seconds)
