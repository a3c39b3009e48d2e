"""The tables of a benchmark: a page of its own and the README's. `python -m benchmarks.tables` writes both anew."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.device import AT_A_TIME
from benchmarks.records import ArmResult, Goal, Report, Spread
from lowrank.files import REPOSITORY, read_json, write_text

RESULT = Path(__file__).parent / "results" / "methods.json"
RESULT_GPU = RESULT.with_name("methods_gpu.json")
README = REPOSITORY / "README.md"
MARKED = re.compile(r"(<!-- benchmarks -->\n).*?(<!-- /benchmarks -->)", re.DOTALL)
MIB = 2**20


def load(result: Path = RESULT) -> Report:
    """A committed result."""
    return Report.model_validate(read_json(result))


def write_pages() -> None:
    """Writes the pages and the README's part from the committed results."""
    for result in filter(Path.is_file, (RESULT, RESULT_GPU)):
        write_text(result.with_suffix(".md"), tables(load(result)))
    write_text(README, show(README.read_text(), load()))


def show(text: str, report: Report) -> str:
    """The README with what stands between its markers written anew."""
    goals = [goal for section in report.sections for goal in section.goals]
    missed = [goal for goal in goals if not goal.met]
    block = (
        f"{len(goals) - len(missed)} of {len(goals)} goals are met"
        f"{'; those that are missed stand below' if missed else ''}. A quotient of times is the median, with "
        "quartiles, of the CPU times of one thread in rounds in which the two alternate; a quotient of bytes is exact. "
        f"{_machine(report)} Every goal and arm, with times and bytes: [benchmarks/results/methods.md]"
        "(benchmarks/results/methods.md); how it is measured: [benchmarks/README.md](benchmarks/README.md)."
    )
    block += f"\n\n{_goals(missed)}" if missed else ""
    return MARKED.sub(lambda match: f"{match[1]}\n{block}\n{match[2]}", text)


def tables(report: Report) -> str:
    """The page: each section with its arms and goals."""
    blocks = [
        "# Methods beside their peers",
        "Written by `make bench`; edit nothing here.",
        _machine(report) + (" A quick run on tiny shapes: these figures mean nothing." if report.quick else ""),
    ]
    for section in report.sections:
        again = f" Measured again on {section.again}." if section.again else ""
        blocks += [
            f"## {section.title}",
            f"{section.setting}.{again}",
            _arms(section.arms, report.gpu),
            _goals(section.goals),
        ]
    return "\n\n".join(blocks) + "\n"


def _machine(report: Report) -> str:
    versions = ", ".join(f"{package} {number}" for package, number in report.versions.items())
    before, after = report.load
    again = [f"{section.title} ({section.again})" for section in report.sections if section.again]
    if report.gpu is not None:
        return (
            f"Measured on {report.date} at {report.commit}, on one {report.gpu}, by the wall clock, {AT_A_TIME} steps "
            f"at a time. {versions}. The limits are goals that were set for one thread of a CPU."
        )
    return (
        f"Measured on {report.date} at {report.commit}, with one thread on {report.cores} cores of {report.cpu} "
        f"({report.bf16 or 'no bfloat16'}), in "
        f"{report.cpu_s:.0f} CPU seconds, while {before:.1f} to {after:.1f} processes were busy. {versions}."
        + (f" Measured again since: {', '.join(again)}." if again else "")
    )


def _arms(arms: tuple[ArmResult, ...], gpu: str | None) -> str:
    rows = [
        f"| {arm.name} | {_milliseconds(arm.step_ms)} | {_mib(arm.saved_bytes)} | {_mib(arm.state_bytes)} "
        f"| {_mib(arm.peak_bytes)} |"
        for arm in arms
    ]
    clock = "ms" if gpu else "CPU ms"
    head = f"| arm | step, {clock} | saved activations, MiB | optimizer state, MiB | peak memory over the model, MiB |"
    return "\n".join([head, "|---|--:|--:|--:|--:|", *rows])


def _goals(goals: list[Goal] | tuple[Goal, ...]) -> str:
    rows = [
        f"| {g.id} | {g.what} | {_spread(g.measured)} | {g.at_most:g} | {'met' if g.met else '**missed**'} |"
        for g in goals
    ]
    table = "\n".join(["| | goal | measured | at most | |", "|---|---|--:|--:|---|", *rows])
    notes = [f"- {g.what}: {g.note}" for g in goals if g.note and not g.met]
    return table + ("\n\n" + "\n".join(["Missed:", "", *notes]) if notes else "")


def _spread(value: Spread) -> str:
    if value.rounds == 1:
        return f"{value.median:.4g}"
    return f"{value.median:.3g} [{value.low:.3g}, {value.high:.3g}]"


def _milliseconds(value: Spread | None) -> str:
    return "" if value is None else f"{value.median:.4g}"


def _mib(value: int | None) -> str:
    return "" if value is None else f"{value / MIB:.1f}"


if __name__ == "__main__":
    write_pages()
