"""A process of its own for each section, so that none finds the memory that an earlier one left behind."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import ParamSpec, TypeVar

import torch

from benchmarks.device import on_gpu

P = ParamSpec("P")
T = TypeVar("T")


def isolated(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, float]:
    """What a function returns, and the CPU seconds that it took, in a copy of this process with one thread.

    On a GPU in this process, since a copy of one that has used a GPU cannot; only the GPU's memory is emptied.
    """
    if on_gpu():
        torch.cuda.empty_cache()
        return _timed(function, args, kwargs)
    # A fork, not a new interpreter: importing the peers takes longer than many of the measurements.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(_timed, function, args, kwargs).result()


def _timed(function: Callable[..., T], args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[T, float]:
    torch.set_num_threads(1)
    began = time.process_time()
    return function(*args, **kwargs), time.process_time() - began
