"""What the sweep's benchmark aims at."""

from __future__ import annotations

from benchmarks.sweep_records import Sweep

GOALS = {
    ("small", 0): (9.0, "PEFT and Trainer in a process a run"),
    ("encoder", 0): (2.5, "PEFT and Trainer in a process a run"),
    ("small", 1): (6.0, "ours in a process a run"),
    ("encoder", 1): (1.7, "ours in a process a run"),
    ("small", 2): (1.0, "one after another in one process"),
    ("encoder", 2): (1.0, "one after another in one process"),
}
"""(shape, way) -> how many times faster the stacks should be than that way, at least."""

FLOOR = 1.5
"""Training in stacks, start-up taken out, over the floor, at most; on the encoder."""

OVER_PEER = {
    ("members, host-bound", 8): (6.0, "host-bound"),
    ("members, host-bound", 32): (15.0, "host-bound"),
    ("members, 4 x 256", 4): (1.15, "4 layers of width 256"),
    ("members, 4 x 256 in bfloat16", 4): (1.5, "the same in bfloat16"),
}
"""(axis, members) -> steps a second over PEFT's, at least, and the shape in words."""

WORKERS = 1.7
"""Packs a second of two workers with a thread each, over one worker's; by the wall clock."""


def goals(result: Sweep) -> list[tuple[str, float, float, bool]]:
    """What is aimed at, what was measured, the limit, and whether it is met."""
    found = []
    for sweep in result.sweeps:
        stacked = sweep.ways[-1]
        for (name, index), (limit, than) in GOALS.items():
            if name == sweep.name:
                gain = round(sweep.ways[index].cpu_s / stacked.cpu_s, 2)
                found.append((f"12-point sweep, {name}: stacked, times faster than {than}", gain, limit, gain >= limit))
    for place in result.growth:
        if (place.axis, place.members) in OVER_PEER:
            limit, words = OVER_PEER[place.axis, place.members]
            gain, what = round(place.over_peer.median, 2), f"a stack of {place.members}, steps a second over PEFT's"
            found.append((f"{words}: {what}", gain, limit, gain >= limit))
    for sweep in result.sweeps:
        one = next((g for g in result.growth if g.axis == "members, encoder" and g.members == 8), None)
        if sweep.name == "encoder" and one is not None:
            per_run = one.stack_ms.median / 1e3 / one.members * sweep.shape["steps"]
            over = round(per_run / sweep.floor_s, 2)
            found.append(("encoder: a step in a stack of 8 over the floor, at most", over, FLOOR, over <= FLOOR))
    for shape in dict.fromkeys(way.shape for way in result.threads):
        walls = {way.processes: way.wall_s.median for way in result.threads if (way.shape, way.threads) == (shape, 1)}
        gain = round(2 * walls[1] / walls[2], 2)
        what = f"{shape}: packs a second of two workers with a thread each, over one worker's, by the wall clock"
        found.append((what, gain, WORKERS, gain >= WORKERS))
    picked = [choice for choice in result.choices if choice.members == choice.chosen]
    if picked:
        worst = round(min(choice.over_alone.median for choice in picked), 2)
        what = f"what the planner stacks, at {len(picked)} sizes: the smallest gain over one after another"
        found.append((what, worst, 1.0, worst >= 1.0))
    return found
