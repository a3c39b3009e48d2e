"""A whole sweep, start-up included, beside a user's shell loop: `python -m benchmarks.sweep`.

Writes results/sweep.json, a page, a figure and the README's part of it. `--quick` runs a tiny shape and writes nothing.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.growth import choices, growth
from benchmarks.isolated import isolated
from benchmarks.sweep_goals import APART, SHELL, SINGLE
from benchmarks.sweep_job import POINTS, SHAPES
from benchmarks.sweep_records import Sweep, Taken, Way, WholeSweep
from benchmarks.sweep_tables import RESULT, load, page, write_pages
from benchmarks.threads import threads
from lowrank.errors import ConfigError
from lowrank.files import REPOSITORY, write_json
from lowrank.measure import device_facts
from lowrank.provenance import provenance
from lowrank.strict import Strict


def process(way: str, shape: str, *extra: str) -> tuple[float, int]:
    """CPU seconds and peak bytes of one process, its start included."""
    command = [sys.executable, "-m", "benchmarks.sweep_job", way, shape, *extra]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    running = subprocess.Popen(
        command, env=environment, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(running.pid, 0)
    running.returncode = os.waitstatus_to_exitcode(status)
    if running.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit code {running.returncode}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def whole_sweep(name: str, peers: int) -> WholeSweep:
    """One shape, three ways and the floor.

    Args:
        name: of the shape.
        peers: how many of the peer's processes are run; each trains one point.
    """
    shape = SHAPES[name]
    ways = []
    single = [process("peer", name, "--point", str(index * len(POINTS) // peers)) for index in range(peers)]
    peer_s = sum(cpu for cpu, _ in single) / peers
    ways.append(Way(name=SHELL, runs=peers, cpu_s=peer_s, peak=max(p for _, p in single)))
    single = [process("apart", name, "--point", str(index * len(POINTS) // peers)) for index in range(peers)]
    own_s = sum(cpu for cpu, _ in single) / peers
    ways.append(Way(name=SINGLE, runs=peers, cpu_s=own_s, peak=max(p for _, p in single)))
    labels = {"apart": APART, "together": "one process, stacked"}
    whole = [(way, *process(way, name)) for _ in range(peers) for way in labels]  # in turn: a machine's pace changes
    for way, label in labels.items():
        cpu = statistics.median(cpu for found, cpu, _ in whole if found == way)
        peak = max(peak for found, _, peak in whole if found == way)
        ways.append(Way(name=label, runs=len(POINTS), cpu_s=cpu / len(POINTS), peak=peak))
    flops, rate = floor(shape)
    return WholeSweep(name=name, shape=shape, ways=tuple(ways), floor_s=flops / rate, flops_a_second=rate)


def floor(shape: dict[str, Any]) -> tuple[float, float]:
    """Operations of a run's forward and backward pass, and how many a second the machine's best product does."""
    import torch

    from benchmarks.sweep_job import attached, batches
    from lowrank.measure import FlopCounter

    torch.set_num_threads(1)
    model = attached(shape, 8).attached
    with FlopCounter() as counted:
        model(**batches(shape)[0]).loss.backward()
    n = 1024
    left, right, best = torch.randn(n, n), torch.randn(n, n), float("inf")
    for _ in range(5):
        began = time.process_time()
        left @ right
        best = min(best, time.process_time() - began)
    return float(counted.get_total_flops() * shape["steps"]), 2 * n**3 / best


def whole_sweeps(peers: int, quick: bool) -> list[WholeSweep]:
    """All shapes."""
    return [whole_sweep(name, peers) for name in (["tiny"] if quick else ["small", "encoder"])]


PARTS: dict[str, Callable[[int, bool], Sequence[Strict]]] = {
    "sweeps": whole_sweeps,
    "growth": growth,
    "choices": choices,
    "threads": threads,
}
"""Field of the result -> what measures it, given how often."""

OFTEN = {"sweeps": 3, "growth": 5, "choices": 7, "threads": 3}
"""Processes of the peer for each shape; rounds."""


def measure(name: str, quick: bool) -> Sweep:
    """Runs one part, in a process of its own."""
    device, before, began = device_facts(), os.getloadavg()[0], os.times()
    found, _ = isolated(PARTS[name], 1 if quick else OFTEN[name], quick)
    used = sum(os.times()[:4]) - sum(began[:4])
    print(f"{name}: {used:.0f} CPU seconds", file=sys.stderr)
    load_average = (before, os.getloadavg()[0])
    told = Taken(date=date.today().isoformat(), commit=provenance()["commit"], cpu_s=used, load=load_average)
    return Sweep.model_validate(
        {
            "cpu": device["cpu_model"],
            "cores": device["cores"],
            "versions": {package: version(package) for package in ("torch", "transformers", "peft")},
            "taken": {name: told},
            name: tuple(found),
        }
    )


def replaced(old: Sweep, new: Sweep) -> Sweep:
    """The old result with the parts of the new one.

    Raises:
        ConfigError: the new one is of another machine or of other packages.
    """
    for what in ("cpu", "cores", "versions"):
        before, now = getattr(old, what), getattr(new, what)
        if before != now:
            raise ConfigError(f"benchmarks: {what} {now!r}, the result has {before!r}; allowed: a run of all parts")
    fresh = {name: getattr(new, name) for name in new.taken}
    return old.model_copy(update={**fresh, "taken": {**old.taken, **new.taken}})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description="A whole sweep, four ways.")
    parser.add_argument("--quick", action="store_true", help="a tiny shape: whether everything runs")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="some parts, put into the result")
    parser.add_argument("--output", type=Path, help=f"a JSON file; otherwise {RESULT.name}")
    told = parser.parse_args()
    importlib.import_module("peft")  # here, since each part starts as a copy of this process
    keeps = not (told.quick or told.output or set(told.only) == set(PARTS))
    result = load() if keeps else None
    for name in told.only:
        part = measure(name, told.quick)
        result = part if result is None else replaced(result, part)
        if told.output or not told.quick:  # after each part: an interruption costs the one that was running
            write_json(told.output or RESULT, result.model_dump())
    if result is not None:
        print(page(result))
    if not told.output and not told.quick:
        write_pages()


if __name__ == "__main__":
    main()
