"""What a person sees while work goes on: a bar on a terminal, lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

LINE_EVERY_S = 10.0
"""Between two lines of progress where there is no terminal."""


def say(message: str) -> None:
    """One line with the time of day, on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def progress(items: Iterable[Item], *, total: int, start: int, label: str) -> Iterator[Item]:
    """Yields the items; shows a bar on a terminal, a line now and then in a log.

    Args:
        items: what is gone through.
        total: how many there are in all.
        start: how many were done before, by an earlier process.
        label: what they are.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, initial=start, desc=label, leave=False, dynamic_ncols=True)
        return
    began = last = time.monotonic()
    for done, item in enumerate(items, start):
        now = time.monotonic()
        if now - last >= LINE_EVERY_S and done > start:
            left = (now - began) / (done - start) * (total - done)
            say(f"{label}: {done}/{total}, about {left:.0f} s left")
            last = now
        yield item
