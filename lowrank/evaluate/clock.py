"""Seconds of small pieces of work, on a machine that others may use."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def clock(device: torch.device) -> str:
    """Whose seconds `seconds` counts: the CPU's own, or the wall's on an accelerator."""
    return "cpu" if device.type == "cpu" else "wall"


def seconds(work: Callable[[], object], device: torch.device, repeats: int, poll: Callable[[], None]) -> float:
    """Median seconds of one call, after one to warm up.

    On a CPU the time that the process computed, all threads together: other users of the machine do not enter. On
    an accelerator wall time between two synchronisations.

    Args:
        work: what is timed.
        device: where it runs.
        repeats: how many calls are timed.
        poll: called before each; it raises where measuring must stop.
    """
    work()
    times = []
    for _ in range(repeats):
        poll()
        began = now(device)
        work()
        times.append(now(device) - began)
    return statistics.median(times)


def now(device: torch.device) -> float:
    """The clock that `seconds` reads."""
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize()
    return time.perf_counter()
