"""Where a benchmark runs, and the clock that fits: a GPU where there is one, otherwise one thread of the CPU."""

from __future__ import annotations

import functools

import torch

from lowrank.evaluate import clock

AT_A_TIME = 5
"""Steps between two looks at a GPU's clock: a look waits for the device, which training does not."""


@functools.cache
def on_gpu() -> bool:
    return torch.cuda.is_available()


def device() -> torch.device:
    return torch.device("cuda" if on_gpu() else "cpu")


def now() -> float:
    """CPU seconds of this process; with a GPU, seconds by the wall once the device has done what it was given."""
    return clock.now(device())


def steps_at_a_time() -> int:
    """Steps that are timed together."""
    return AT_A_TIME if on_gpu() else 1
