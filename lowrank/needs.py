"""What a pack asks of a machine: memory, minutes, accelerators. The rules turn it into resources."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from lowrank.spec import RunSpec, TrainSpec
from lowrank.study import ScaleSpec

LEAST_MINUTES = 10
"""A job pays for its start, and a time limit that ends a healthy job costs a whole attempt."""

SLACK = 2.0
"""Minutes asked for over minutes expected."""


def add_needs(plan: dict[str, Any], scales: Mapping[str, ScaleSpec]) -> dict[str, Any]:
    """Writes `minutes` and `gpus` (of a process) into every pack of a plan, and returns it.

    A study says how long all its runs take at a scale; a pack's share is that of its steps. What only the target
    `extended` trains has minutes of its own.

    Args:
        plan: of `lowrank.planning`.
        scales: study -> what it is at the plan's scale.
    """
    taken: Counter[tuple[str, bool]] = Counter()
    for pack in plan["packs"].values():
        taken.update({(owner, pack["extended"]): pack["steps"] for owner in pack["owners"]})
    for pack in plan["packs"].values():
        parts = {owner: scales[owner].extended if pack["extended"] else scales[owner] for owner in pack["owners"]}
        shares = [
            part.minutes * pack["steps"] / max(1, taken[owner, pack["extended"]])
            for owner, part in parts.items()
            if part is not None
        ]
        pack["minutes"] = max(LEAST_MINUTES, math.ceil(SLACK * max(shares, default=0.0)))
        pack["gpus"] = max((scales[owner].gpus for owner in pack["owners"]), default=0)
    return plan


def steps(spec: RunSpec) -> int:
    """How long a run is, as far as its spec says; the loop counts the rows that are there."""
    per_epoch = -(-(spec.data.train_rows or 0) // spec.train.batch_size)
    return spec.train.steps or (spec.train.epochs or 0) * per_epoch


def processes(runs: Iterable[TrainSpec], most: int) -> int:
    """How many processes train each of some runs: the most, up to a limit, that share its micro-batches evenly."""
    pieces = [-(-train.batch_size // (train.micro_batch_size or train.batch_size)) for train in runs]
    return max(count for count in range(1, most + 1) if all(number % count == 0 for number in pieces))
