"""One pack on two threads beside two packs on one thread each, and on two threads each: what fills two cores best."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from benchmarks.records import Spread
from benchmarks.sweep_job import SHAPES, batches, stack
from benchmarks.sweep_records import Threads
from lowrank.stacks import by_tokens

WAYS = ((1, 1), (2, 1), (1, 2), (2, 2))
"""(processes, threads of each)"""

STEPS = {"small": 60, "encoder": 20, "tiny": 2}


def threads(rounds: int, quick: bool) -> list[Threads]:
    """Each way in turn, round after round; a process trains a stack as large as the planner makes it."""
    found = []
    for name in ["tiny"] if quick else ["small", "encoder"]:
        shape = {**SHAPES[name], "steps": STEPS[name]}
        members = min(12, by_tokens(shape["rows"] * shape["tokens"]))
        seconds: dict[tuple[int, int], list[tuple[float, float]]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                seconds[way].append(_at_once(*way, shape, members))
        for (processes, own), taken in seconds.items():
            walls, busy = zip(*taken, strict=True)
            place: dict[str, Any] = {"shape": name, "processes": processes, "threads": own, "members": members}
            found.append(Threads(**place, wall_s=Spread.of(walls), busy_s=Spread.of(busy)))
    return found


def _at_once(processes: int, own: int, shape: dict[str, Any], members: int) -> tuple[float, float]:
    """Seconds until all are done, and the CPU seconds of the slowest one's calling thread."""
    # Forked, so that nothing is imported again; no thread but this one has been started until now.
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager, ProcessPoolExecutor(processes, mp_context=context) as pool:
        ready = manager.Barrier(processes)
        running = [pool.submit(_train, shape, members, own, ready) for _ in range(processes)]
        ends = [future.result() for future in running]
    return max(wall for wall, _ in ends), max(busy for _, busy in ends)


def _train(shape: dict[str, Any], members: int, own: int, ready: Any) -> tuple[float, float]:
    torch.set_num_threads(own)
    step, given = stack(shape, [(8, 1e-4)] * members), batches(shape)
    step(given[0])  # threads start, memory is taken
    ready.wait()
    wall, busy = time.perf_counter(), time.thread_time()
    for batch in given[1:]:
        step(batch)
    return time.perf_counter() - wall, time.thread_time() - busy
