"""What the sweep's benchmark aims at."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.sweep_records import Sweep

SHELL, SINGLE, APART = (
    "a process a run: PEFT and Trainer",
    "a process a run: ours",
    "one process, one after another",
)
"""What stacks are compared with."""

SWEEPS = {
    ("small", SHELL): 9.0,
    ("encoder", SHELL): 2.5,
    ("small", SINGLE): 6.0,
    ("encoder", SINGLE): 1.7,
    ("small", APART): 1.0,
    ("encoder", APART): 1.0,
}
"""(shape, way) -> how many times faster the stacks should be than that way, at least."""

FLOOR = 1.5
"""Training in stacks, start-up taken out, over the floor, at most; on the encoder."""

OVER_PEER = {
    ("members, host-bound", 8): (6.0, "host-bound"),
    ("members, host-bound", 32): (15.0, "host-bound"),
    ("members, 4 x 256", 4): (1.15, "4 layers of width 256"),
    ("members, 4 x 256 in bfloat16", 4): (1.5, "4 layers of width 256 in bfloat16"),
}
"""(axis, members) -> steps a second over PEFT's, at least, and the shape in words."""

WORKERS = 1.7
"""Packs a second of two workers with a thread each, over one worker's; by the wall clock."""


class Aim(NamedTuple):
    """A goal and what was found; None where it was not measured."""

    what: str
    measured: float | None
    limit: float
    at_most: bool = False

    @property
    def verdict(self) -> str:
        """Judged as printed."""
        if self.measured is None:
            return "**not measured**"
        enough = self.measured <= self.limit if self.at_most else self.measured >= self.limit
        return "met" if enough else "**missed**"


def goals(result: Sweep) -> list[Aim]:
    """Every goal."""
    ways = {(sweep.name, way.name): way.cpu_s for sweep in result.sweeps for way in sweep.ways}
    stacked = {sweep.name: sweep.ways[-1].cpu_s for sweep in result.sweeps}
    found = [
        Aim(
            f"12-point sweep, {shape}: stacked, times faster than {way}",
            _over(ways.get((shape, way)), stacked, shape),
            n,
        )
        for (shape, way), n in SWEEPS.items()
    ]
    grown = {(place.axis, place.members): place for place in result.growth}
    for place, (limit, words) in OVER_PEER.items():
        over = round(grown[place].over_peer.median, 2) if place in grown else None
        found.append(Aim(f"{words}: a stack of {place[1]}, steps a second over PEFT's", over, limit))
    eight, encoder = grown.get(("members, encoder", 8)), next((s for s in result.sweeps if s.name == "encoder"), None)
    over = None
    if eight and encoder:
        over = round(eight.stack_ms.median / 1e3 / 8 * encoder.shape["steps"] / encoder.floor_s, 2)
    found.append(Aim("encoder: a step in a stack of 8 over the floor, at most", over, FLOOR, at_most=True))
    walls = {(t.shape, t.processes): t.wall_s.median for t in result.threads if t.threads == 1}
    for shape in ("small", "encoder"):
        gain = round(2 * walls[shape, 1] / walls[shape, 2], 2) if (shape, 1) in walls else None
        what = f"{shape}: packs a second of two workers with a thread each, over one worker's, by the wall clock"
        found.append(Aim(what, gain, WORKERS))
    picked = [choice.over_alone.median for choice in result.choices if choice.members == choice.chosen]
    what = f"what the planner stacks, at {len(picked)} sizes: the smallest gain over one after another"
    return [*found, Aim(what, round(min(picked), 2) if picked else None, 1.0)]


def _over(seconds: float | None, stacked: dict[str, float], shape: str) -> float | None:
    return None if seconds is None else round(seconds / stacked[shape], 2)
