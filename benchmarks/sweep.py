"""A whole sweep, start-up included, beside a user's shell loop: `python -m benchmarks.sweep`.

Writes results/sweep.json, a page, a figure and the README's part of it. `--quick` runs a tiny shape and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.sweep_job import POINTS, SHAPES
from benchmarks.sweep_tables import RESULT, Growth, Sweep, Way, WholeSweep, page, write_pages
from lowrank.files import REPOSITORY, write_json
from lowrank.measure import device_facts
from lowrank.provenance import provenance

HOST_BOUND = {"layers": 6, "width": 32, "hidden": 128, "vocabulary": 64, "rows": 1, "tokens": 4, "steps": 100}
"""So small that the host's own work is all there is, as on a GPU with small batches."""


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
    ways.append(Way(name="a process a run: PEFT and Trainer", runs=peers, cpu_s=peer_s, peak=max(p for _, p in single)))
    for label, way in (("one process, one after another", "apart"), ("one process, stacked", "together")):
        cpu, peak = process(way, name)
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


def growth(rounds: int) -> list[Growth]:
    """A step's time and saved bytes against pack size, rank, width and length of a text."""
    import torch

    from benchmarks.sweep_job import attached, batches, peer_model, stack
    from lowrank.measure.storages import model_tensors, saved_tensors, storage_bytes

    torch.set_num_threads(1)
    encoder = SHAPES["encoder"]
    cases: list[tuple[str, int, dict[str, Any], int, int]] = []
    cases += [("members, host-bound", k, HOST_BOUND, 8, k) for k in (1, 2, 4, 8, 16, 32)]
    cases += [("members, encoder", k, encoder, 8, k) for k in (1, 2, 4, 8)]
    cases += [("rank", rank, encoder, rank, 4) for rank in (4, 16, 64)]
    cases += [("width", w, {**encoder, "width": w, "hidden": 4 * w}, 8, 4) for w in (128, 256, 512)]
    cases += [("tokens", t, {**encoder, "tokens": t}, 8, 4) for t in (12, 24, 48)]
    found = []
    for axis, value, shape, rank, members in cases:
        step = stack(shape, [(rank, 1e-4)] * members)
        model = attached(shape, rank).attached
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
        peer, peer_optimizer = peer_model(shape, rank)
        batch = batches({**shape, "steps": 1})[0]

        def alone(model: Any = model, optimizer: Any = optimizer, batch: Any = batch) -> None:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        arms: dict[str, Any] = {"stack": lambda step=step, batch=batch: step(batch), "alone": alone}
        arms["peer"] = lambda m=peer, o=peer_optimizer, b=batch, alone=alone: alone(m, o, b)
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for number in range(rounds + 1):
            for name, arm in arms.items():
                began = time.process_time()
                for _ in range(members if name != "stack" and shape is HOST_BOUND else 1):
                    arm()
                cost = time.process_time() - began
                if number:
                    seconds[name].append(cost if name == "stack" or shape is HOST_BOUND else cost * members)
        with saved_tensors() as saved:
            loss = model(**batch).loss
        held = storage_bytes(saved.held(), exclude=list(model_tensors(model)))
        del loss
        found.append(Growth.of(axis, value, members, seconds, held))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description="A whole sweep, four ways.")
    parser.add_argument("--quick", action="store_true", help="a tiny shape: whether everything runs")
    parser.add_argument("--peers", type=int, default=3, help="processes of the peer that are run for each shape")
    parser.add_argument("--output", type=Path, help=f"a JSON file; otherwise {RESULT.name}")
    told = parser.parse_args()
    load = os.getloadavg()[0]
    names = ["tiny"] if told.quick else ["small", "encoder"]
    result = Sweep(
        date=date.today().isoformat(),
        commit=provenance()["commit"],
        cpu=str(device_facts()["cpu_model"]),
        versions={package: version(package) for package in ("torch", "transformers", "peft")},
        load=load,
        sweeps=tuple(whole_sweep(name, 1 if told.quick else told.peers) for name in names),
        growth=() if told.quick else tuple(growth(5)),
    )
    print(page(result))
    if told.output or not told.quick:
        write_json(told.output or RESULT, result.model_dump())
    if not told.output and not told.quick:
        write_pages()


if __name__ == "__main__":
    main()
