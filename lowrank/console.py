"""What a person sees while work goes on: a bar on a terminal, lines in a log.

A job of the workflow writes everything to its log; what is worth seeing at once goes to the screen too.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO, TypeVar

Item = TypeVar("Item")

LINE_EVERY_S = 10.0
"""Between two lines of progress where there is no terminal."""


_screen: TextIO | None = None
"""Where standard error went before it was sent to a log."""

_silent = False
"""Whether this process leaves it to another to say what goes on."""


def silence() -> None:
    """From now on this process says failures only: another does the same and tells of it."""
    global _silent
    _silent = True


def log_to(path: Path) -> None:
    """Sends all output of this process, that of libraries too, to a file; `announce` still reaches the screen."""
    global _screen
    path.parent.mkdir(parents=True, exist_ok=True)
    _screen = os.fdopen(os.dup(2), "w", buffering=1)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def say(message: str) -> None:
    """One line with the time of day, on standard error."""
    if not _silent:
        print(_line(message), file=sys.stderr, flush=True)


def announce(message: str) -> None:
    """Like `say`, and to the screen where standard error is a log; of a silent process too."""
    print(_line(message), file=sys.stderr, flush=True)
    if _screen is not None:
        print(_line(message), file=_screen, flush=True)


def _line(message: str) -> str:
    return f"{time.strftime('%H:%M:%S')} {message}"


def progress(items: Iterable[Item], *, total: int, start: int, label: str) -> Iterator[Item]:
    """Yields the items; shows a bar on a terminal, a line now and then in a log.

    Args:
        items: what is gone through.
        total: how many there are in all.
        start: how many were done before, by an earlier process.
        label: what they are.
    """
    if _silent:
        yield from items
        return
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


def repeat_flag(arguments: list[str], flag: str) -> list[str]:
    """`--lrs 1 2 3` as `--lrs 1 --lrs 2 --lrs 3`: the document writes several values behind one flag."""
    spread: list[str] = []
    inside = False
    for argument in arguments:
        value = not argument.startswith("-") or argument[1:2].isdigit()
        if inside and value:
            spread += [flag, argument]
            continue
        inside = argument == flag
        if not inside:
            spread.append(argument)
    return spread
