"""What the sweep's benchmark finds, its page, its figure and the README's part. `python -m benchmarks.sweep_tables`."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from benchmarks.records import Spread
from benchmarks.sweep_goals import goals
from benchmarks.sweep_records import Sweep, Threads, WholeSweep
from lowrank.files import REPOSITORY, read_json, write_text

RESULT = Path(__file__).parent / "results" / "sweep.json"
PAGE, FIGURE = RESULT.with_suffix(".md"), RESULT.with_suffix(".svg")
README = REPOSITORY / "README.md"
MARKED = re.compile(r"(<!-- sweep -->\n).*?(<!-- /sweep -->)", re.DOTALL)

CHOICES = (
    "Members together beside the same one after another: LoRA of rank 8 on a BERT. Where the planner's choice is 1, "
    "runs train alone, and the rows say what company would have cost; elsewhere they show two members, the choice, and "
    "twice as many."
)

THREADS = (
    "One pack and two packs on one thread each, one pack on two threads, two packs on two threads each; a pack is a "
    "stack as large as the planner makes it. The last columns compare with two packs on one thread each. CPU seconds "
    "are those of the slowest process's calling thread, which waits without computing: what the wall clock would show "
    "on a machine that nobody else uses, or a little less; of more threads than cores they say nothing."
)


def load() -> Sweep:
    """The committed result."""
    return Sweep.model_validate(read_json(RESULT))


def page(result: Sweep) -> str:
    """The page."""
    blocks = ["# A whole sweep, four ways", "Written by `python -m benchmarks.sweep`; edit nothing here."]
    blocks.append(_machine(result))
    for sweep in result.sweeps:
        blocks += [f"## {sweep.name}", _setting(sweep), _ways(sweep)]
    if result.sweeps:
        blocks.append(_taken(result, "sweeps"))
    if result.growth:
        blocks += ["## How the cost grows", f"![how the cost grows]({FIGURE.name})", _growth(result)]
        blocks.append(_taken(result, "growth"))
    if result.choices:
        blocks += ["## What the planner chooses", CHOICES, _choices(result), _taken(result, "choices")]
    if result.threads:
        blocks += ["## Threads", THREADS, _threads(result), _taken(result, "threads")]
    return "\n\n".join([*blocks, "## Goals", _goals(result)]) + "\n"


def show(text: str, result: Sweep) -> str:
    """The README with what stands between its markers written anew."""
    place = f"[{PAGE.name}](benchmarks/results/{PAGE.name})"
    more = f"Every way's seconds and memory, how the cost grows, when stacking pays, and threads: {place}."
    block = "\n\n".join([f"{_machine(result)} {_taken(result, 'sweeps')}", _goals(result), more])
    return MARKED.sub(lambda match: f"{match[1]}\n{block}\n{match[2]}", text)


def write_pages() -> None:
    """Writes page, figure and the README's part from the committed result."""
    result = load()
    draw(result)
    write_text(PAGE, page(result))
    write_text(README, show(README.read_text(), result))


def draw(result: Sweep) -> None:
    """One panel an axis: a stack's step, and how much faster its members go than alone."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "sweep"
    places_of = Counter(place.axis for place in result.growth)
    axes = [axis for axis, places in places_of.items() if places > 2]  # two places are a row of the table, no curve
    figure, panels = pyplot.subplots(2, len(axes), figsize=(3 * len(axes), 5), sharex="col", layout="constrained")
    for column, axis in enumerate(axes):
        places = [place for place in result.growth if place.axis == axis]
        x = [place.value for place in places]
        panels[0, column].plot(x, [place.stack_ms.median / place.members for place in places], "o-", label="stacked")
        alone = [place.stack_ms.median * place.over_alone.median / place.members for place in places]
        panels[0, column].plot(x, alone, "s--", label="alone")
        panels[1, column].plot(x, [place.saved_bytes / 2**20 for place in places], "o-", color="C2")
        panels[1, column].set_xlabel(axis)
        for row in (0, 1):
            panels[row, column].set_ylim(bottom=0)
    panels[0, 0].set_ylabel("CPU ms a step and member")
    panels[1, 0].set_ylabel("saved a member, MiB")
    panels[0, 0].legend(frameon=False)
    figure.savefig(FIGURE, metadata={"Date": None})
    pyplot.close(figure)


def _machine(result: Sweep) -> str:
    versions = ", ".join(f"{package} {number}" for package, number in result.versions.items())
    return (
        f"CPU seconds of one thread, but for the section on threads, on {result.cores} cores of {result.cpu}; "
        f"{versions}. What a GPU ran of it: docs/gpu.md."
    )


def _taken(result: Sweep, part: str) -> str:
    taken = result.taken[part]
    busy = " to ".join(f"{value:.1f}" for value in taken.load)
    seconds = "" if taken.cpu_s is None else f"in {taken.cpu_s:.0f} CPU seconds, "
    return (
        f"Measured on {taken.date} at {taken.commit or 'an unknown commit'}, {seconds}while {busy} processes were busy."
    )


def _setting(sweep: WholeSweep) -> str:
    s = sweep.shape
    return (
        f"{sweep.name}: BERT of {s['layers']} layers, width {s['width']}, {s['rows']} x {s['tokens']} tokens, "
        f"{s['steps']} steps a run; LoRA of 3 ranks and 4 learning rates."
    )


def _ways(sweep: WholeSweep) -> str:
    first = sweep.ways[0].cpu_s
    rows = [
        f"| {way.name} | {way.runs} | {way.cpu_s:.2f} | {first / way.cpu_s:.1f} | {way.peak / 2**20:.0f} |"
        for way in sweep.ways
    ]
    rows.append(
        f"| floor: the arithmetic alone, at {sweep.flops_a_second / 1e9:.0f} GFLOP/s | | {sweep.floor_s:.2f} "
        f"| {first / sweep.floor_s:.1f} | |"
    )
    head = "| way | runs measured | CPU s a run | times faster | peak memory, MiB |\n|---|--:|--:|--:|--:|"
    return "\n".join([head, *rows])


def _growth(result: Sweep) -> str:
    rows = [
        f"| {g.axis} | {g.value} | {g.members} | {g.stack_ms.median:.1f} | {_spread(g.over_alone)} "
        f"| {_spread(g.over_peer)} | {g.saved_bytes / 2**20:.1f} |"
        for g in result.growth
    ]
    head = (
        "| axis | value | members | step, CPU ms | over ours alone | over PEFT | saved a member, MiB |\n" + "|---" * 2
    )
    return "\n".join([head + "|--:" * 5 + "|", *rows])


def _choices(result: Sweep) -> str:
    rows = [
        f"| {c.layers} | {c.width} | {c.tokens} | {c.chosen} | {c.members} | {_spread(c.over_alone)} |"
        for c in result.choices
    ]
    head = "| layers | width | tokens a member | the planner's choice | members | over one after another |\n"
    return "\n".join([head + "|--:" * 6 + "|", *rows])


def _threads(result: Sweep) -> str:
    rows = []
    for t in result.threads:
        one = next(o for o in result.threads if (o.shape, o.processes, o.threads) == (t.shape, 2, 1))
        rows.append(
            f"| {t.shape} | {t.processes} | {t.threads} | {_spread(t.wall_s)} | {_spread(t.busy_s)} "
            f"| {_of(t, one, 'wall_s')} | {_of(t, one, 'busy_s') if t.processes * t.threads <= result.cores else ''} |"
        )
    head = (
        "| shape | packs at once | threads of each | wall s | CPU s of a calling thread | packs a wall second "
        "| packs a CPU second |\n"
    )
    return "\n".join([head + "|---" + "|--:" * 6 + "|", *rows])


def _of(way: Threads, one: Threads, clock: str) -> str:
    """Packs a second, over those of two packs on one thread each."""
    own, theirs = getattr(way, clock).median, getattr(one, clock).median
    return f"{way.processes / own * theirs / one.processes:.2f}"


def _goals(result: Sweep) -> str:
    rows = [
        f"| {aim.what} | {'' if aim.measured is None else f'{aim.measured:g}'} | {aim.limit:g} | {aim.verdict} |"
        for aim in goals(result)
    ]
    return "\n".join(["| goal | measured | limit | |\n|---|--:|--:|---|", *rows])


def _spread(value: Spread) -> str:
    return f"{value.median:.2f} [{value.low:.2f}, {value.high:.2f}]"


if __name__ == "__main__":
    write_pages()
