"""What a pack asks of a machine: memory, minutes, accelerators. The rules turn it into resources."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from lowrank.errors import ConfigError
from lowrank.estimate import Estimate, estimate, refuse_what_does_not_fit
from lowrank.gpus import GpuFacts
from lowrank.site import read_site
from lowrank.spec import EvalSpec, RunSpec, TrainSpec
from lowrank.stacks import Room
from lowrank.strict import parse
from lowrank.study import ScaleSpec

LEAST_MINUTES = 10
"""A job pays for its start, and a time limit that ends a healthy job costs a whole attempt."""

SLACK = 2.0
"""Minutes asked for over minutes expected."""

STACKED = 0.4
"""A run's step in a stack, of one alone: what its own tensors take is shared or small."""

PACK_HOURS = 48
"""Runs on GPUs share a pack until they are expected to take longer: few jobs, and none whose runs wait for a week."""

HOST_MB = 6000
"""Memory of the machine that a job on a GPU takes besides its model: Python, torch and CUDA."""


def add_needs(plan: dict[str, Any], scales: Mapping[str, ScaleSpec]) -> dict[str, Any]:
    """Writes `minutes`, `expected_minutes`, `gpus` (of a process) and `mem_mb` into every pack, and returns the plan.

    With GPUs, which the site names, minutes are `SLACK` times the estimate of the pack's runs, one after another, and
    memory is that of reading the largest model and of saving its state. Without, a study says how long all its runs
    take and what a pack may hold; a pack's share of the time is that of its evaluations and its steps, where one in a
    stack counts less. What only the target `extended` trains has minutes of its own.

    Args:
        plan: of `lowrank.planning`.
        scales: study -> what it is at the plan's scale.

    Raises:
        ConfigError: a run that the GPU cannot hold; names it, and what would fit.
    """
    taken: dict[tuple[str, bool], float] = defaultdict(float)
    for pack in plan["packs"].values():
        for owner in pack["owners"]:
            taken[owner, pack["extended"]] += _work(pack, plan["evaluations"])
    for pack in plan["packs"].values():
        pack["gpus"] = max((scales[owner].gpus for owner in pack["owners"]), default=0)
        if pack["gpus"]:
            minutes, pack["mem_mb"] = _on_a_gpu(plan, pack, read_site().gpu.facts())
        else:
            parts = {owner: scales[owner].extended if pack["extended"] else scales[owner] for owner in pack["owners"]}
            shares = [
                part.minutes * _work(pack, plan["evaluations"]) / taken[owner, pack["extended"]]
                for owner, part in parts.items()
                if part is not None
            ]
            minutes = max(shares, default=0.0)
        pack["expected_minutes"] = minutes
        pack["minutes"] = max(LEAST_MINUTES, math.ceil(SLACK * minutes))
    return plan


def _work(pack: Mapping[str, Any], evaluations: Mapping[str, Mapping[str, Any]]) -> float:
    """Steps and evaluations of a pack's runs, in steps of a run alone."""
    alone = sum(len(stack["members"]) == 1 for stack in pack["stacks"])
    runs = len(pack["members"])
    work: float = pack["steps"] * (alone + STACKED * (runs - alone)) / runs
    scoring: float = runs * sum(evaluations[name]["steps"] for name in pack["evaluations"])
    return work + scoring


def cut(
    runs: Mapping[str, Mapping[str, Any]], size: int, evaluations: Collection[EvalSpec], room: Room
) -> list[list[str]]:
    """Cuts runs that are alike into packs of up to `size` runs and, on GPUs, of up to `PACK_HOURS`.

    Args:
        runs: id -> entry of the plan.
        size: most runs in one pack.
        evaluations: what they are scored by.
        room: of the job that trains them.

    Raises:
        ConfigError: a run that the GPU cannot hold.
    """
    gpu = read_site().gpu.facts()
    packs: list[list[str]] = []
    left = 0.0
    for run, entry in runs.items():
        took = _seconds(_estimate(run, entry, evaluations, gpu), room.processes) if room.gpu else 0.0
        if not packs or len(packs[-1]) == size or took > left:
            packs.append([])
            left = PACK_HOURS * 3600
        packs[-1].append(run)
        left -= took
    return packs


def _estimate(run: str, entry: Mapping[str, Any], evaluations: Iterable[EvalSpec], gpu: GpuFacts) -> Estimate:
    spec = parse(RunSpec, entry["spec"], run)
    try:
        refuse_what_does_not_fit(spec, gpu)
        return estimate(spec, evaluations, gpu, entry["keep_weights"])
    except ConfigError as error:
        raise ConfigError(f"{', '.join(entry['owners'])}: run {run}: {error}") from None


def _seconds(found: Estimate, ranks: int) -> float:
    """Of a run that several processes train and one scores."""
    return found.training_seconds / ranks + found.scoring_seconds


def _on_a_gpu(plan: Mapping[str, Any], pack: Mapping[str, Any], gpu: GpuFacts) -> tuple[float, int]:
    """Minutes that a pack takes, and megabytes of the machine's own memory."""
    evaluations = [parse(EvalSpec, plan["evaluations"][name]["spec"], name) for name in pack["evaluations"]]
    seconds, held = 0.0, 0
    for run in pack["members"]:
        found = _estimate(run, plan["runs"][run], evaluations, gpu)
        seconds += _seconds(found, pack["processes"])
        # A model is read from its files into tensors, then into the model; a checkpoint lies in memory before the disk.
        held = max(held, 2 * found.forecast.parameter_bytes + found.work_bytes // 2)
    return seconds / 60, pack["processes"] * (HOST_MB + held // 10**6)


def processes(runs: Iterable[TrainSpec], most: int) -> int:
    """How many processes train each of some runs: the most, up to a limit, that share its micro-batches evenly."""
    pieces = [-(-train.batch_size // (train.micro_batch_size or train.batch_size)) for train in runs]
    return max(count for count in range(1, most + 1) if all(number % count == 0 for number in pieces))
