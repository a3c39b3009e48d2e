"""What a pack asks of a machine: memory, minutes, accelerators. The rules turn it into resources."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LEAST_MINUTES = 10
"""A job pays for its start, and a time limit that ends a healthy job costs a whole attempt."""

SLACK = 2.0
"""Minutes asked for over minutes expected."""


def add_needs(plan: dict[str, Any], minutes: Mapping[str, float], gpus: Mapping[str, int]) -> dict[str, Any]:
    """Writes `minutes` and `gpus` into every pack of a plan, and returns it.

    A study says how long all its runs take at a scale; a pack's share is that of its steps.

    Args:
        plan: of `lowrank.planning`.
        minutes: study -> minutes of all its packs, one after another.
        gpus: study -> accelerators of one job.
    """
    steps = {
        study: sum(pack["steps"] for pack in plan["packs"].values() if study in pack["owners"]) for study in minutes
    }
    for pack in plan["packs"].values():
        shares = [minutes[owner] * pack["steps"] / max(1, steps[owner]) for owner in pack["owners"]]
        pack["minutes"] = max(LEAST_MINUTES, math.ceil(SLACK * max(shares, default=0.0)))
        pack["gpus"] = max((gpus[owner] for owner in pack["owners"]), default=0)
    return plan
