"""Being asked to stop: a flag that long loops poll, so that nothing is lost."""

from __future__ import annotations

import signal
from types import FrameType

from lowrank.errors import Preempted


class StopFlag:
    """Remembers that SIGTERM or SIGUSR1 arrived.

    A cluster sends one of them before it takes the machine away. The handler only sets the flag:
    the loop that polls it saves its state and raises `Preempted` at a point of its own choosing.

    Args:
        at_once: raise where the signal arrives instead, for work that has nothing to save and whose
            files appear whole or not at all.
    """

    def __init__(self, at_once: bool = False) -> None:
        self.received: str | None = None
        self.at_once = at_once

    def install(self) -> StopFlag:
        """Starts listening; call it once, in the main thread."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        first = self.received is None
        self.received = signal.Signals(number).name
        if self.at_once and first:  # a second one must not cut short the clearing up after the first
            raise Preempted(f"{self.received} received: nothing was written; the same command starts again")

    def __bool__(self) -> bool:
        return self.received is not None

    def check(self, doing: str) -> None:
        """Raises `Preempted` if a signal has arrived.

        Args:
            doing: what was interrupted and is safe, for the message.
        """
        if self:
            raise Preempted(f"{self.received} received: {doing}; the same command goes on from there")
