"""Timing that survives a busy machine: CPU time of one thread, arms in turn, ratios within a round."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping

from benchmarks.records import Spread

Step = Callable[[], object]


class Times:
    """CPU seconds of each arm, one for each round."""

    def __init__(self, seconds: Mapping[str, list[float]]) -> None:
        self.seconds = seconds

    def cpu_ms(self, arm: str) -> Spread:
        return Spread.of([1e3 * value for value in self.seconds[arm]])

    def ratio(self, arm: str, other: str) -> Spread:
        """Median of the ratios of one round, which a slower machine in that round leaves as they are."""
        return Spread.of([a / b for a, b in zip(self.seconds[arm], self.seconds[other], strict=True)])


def alternate(
    arms: Mapping[str, Step], rounds: int, *, warm: bool = False, prepare: Mapping[str, Step] | None = None
) -> Times:
    """Runs each arm once a round, in an order that is turned around from round to round.

    Args:
        arms: name -> one step.
        rounds: that count.
        warm: each has run already; otherwise one more round comes first.
        prepare: name -> what comes before the step and is not timed.

    Returns:
        `time.process_time`, which leaves out what other processes did meanwhile. On a CPU the backward pass
        runs in the calling thread, so one thread is all there is.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    order = list(arms)
    gc.collect()
    gc.disable()  # a collection would fall into one arm or another
    try:
        for number in range(warm, rounds + 1):
            for name in order:
                if prepare:
                    prepare[name]()
                began = time.process_time()
                arms[name]()
                if number:
                    seconds[name].append(time.process_time() - began)
            order.reverse()
    finally:
        gc.enable()
    return Times(seconds)
