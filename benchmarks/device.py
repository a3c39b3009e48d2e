"""Where a benchmark runs, and the clock that fits: a GPU where there is one, otherwise one thread of the CPU."""

from __future__ import annotations

import functools
import time

import torch

AT_A_TIME = 5
"""Steps between two looks at a GPU's clock: a look waits for the device, which training does not."""


@functools.cache
def on_gpu() -> bool:
    return torch.cuda.is_available()


def device() -> torch.device:
    return torch.device("cuda" if on_gpu() else "cpu")


def gpu_name() -> str | None:
    return torch.cuda.get_device_name() if on_gpu() else None


def now() -> float:
    """CPU seconds of this process; with a GPU, seconds by the wall once the device has done what it was given."""
    if not on_gpu():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def steps_at_a_time() -> int:
    """Steps that are timed together."""
    return AT_A_TIME if on_gpu() else 1
