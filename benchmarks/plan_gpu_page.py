"""The page of `benchmarks.plan_gpu`: every kind of run of paper scale, predicted beside measured."""

from __future__ import annotations

import statistics
from typing import Literal

from benchmarks.records import Spread
from lowrank.gpus import BANDWIDTH_EFFICIENCY, EFFICIENCY, KERNEL_S
from lowrank.strict import Strict

MEMORY, TIME = 0.10, 1.5
"""How far a prediction may be from what is measured: bytes as a share, seconds as a factor."""

ROUNDS = 3


class Row(Strict):
    """One kind of run. Bytes: the peak over first steps and an evaluation, weights included. Seconds: a micro-batch and
    an update, and a batch of an evaluation."""

    kind: str
    """Digest of what decides its sizes."""
    study: str
    name: str
    precision: Literal["fp32", "bf16"]
    allocated_bytes: int | None
    """Most that torch's allocator held; None where the run did not fit."""
    step_s: Spread | None
    """None where it did not fit, or takes no step."""
    eval_s: Spread | None
    error: str = ""
    predicted_bytes: int = 0
    predicted_s: float = 0.0
    predicted_eval_s: float = 0.0
    flops: int = 0
    """Of the step."""


class Report(Strict):
    """One run of the benchmark."""

    date: str
    commit: str | None
    gpu: str
    memory_gb: int
    torch: str
    minutes: float
    note: str = ""
    """What else a reader of these figures must know."""
    asked: int
    """Kinds of run that the studies ask for."""
    rows: tuple[Row, ...]
    fitted: tuple[float, float, float, float] | None = None
    """With which all rows are met best: share of the peak in float32 and in bfloat16, of the bandwidth, and seconds a
    kernel; None where too few were measured to say."""


def verdict(report: Report) -> str:
    """How many predictions are near enough, as sentences."""
    held = [each.predicted_bytes / each.allocated_bytes for each in report.rows if each.allocated_bytes]
    exact = sum(abs(ratio - 1) <= MEMORY for ratio in held)
    more = sum(ratio < 1 - MEMORY for ratio in held)
    timed = {
        "steps": [each.predicted_s / each.step_s.median for each in report.rows if each.step_s],
        "evaluations": [each.predicted_eval_s / each.eval_s.median for each in report.rows if each.eval_s],
    }
    told = [
        f"{sum(1 / TIME <= ratio <= TIME for ratio in ratios)} of {len(ratios)} {what} (median of predicted over "
        f"measured {statistics.median(ratios):.2f})"
        for what, ratios in timed.items()
        if ratios
    ]
    return (
        f"{len(report.rows)} of the {report.asked} kinds of run were measured, and {len(held)} fitted. Memory within "
        f"{MEMORY:.0%}: {exact} of {len(held)}, {more} took more. Time within a factor of {TIME:g}: {', '.join(told)}."
    )


def markdown(report: Report) -> str:
    """results/plan_gpu.md."""
    head = (
        "| study | run | | peak GB, predicted | measured | ratio | step ms, predicted | measured | ratio | TFLOP/s | "
        "scores of a batch, ms, predicted | measured | ratio |"
    )
    lines = [
        "# What is planned for paper scale, and what a GPU takes",
        f"Written by `python -m benchmarks.plan_gpu` from `plan_gpu.json`, {report.date}, at {report.commit}; one "
        f"{report.gpu}, torch {report.torch}, {report.minutes:.1f} minutes. One step of every kind of run that the "
        f"studies ask for at paper scale (micro-batch and update), with random weights and tokens. Memory: most that "
        f"torch's allocator held. Time: median of some steps by the wall clock; predicted with {EFFICIENCY:.0%} of "
        f"the GPU's peak, {BANDWIDTH_EFFICIENCY:.0%} of its bandwidth and {KERNEL_S * 1e6:.0f} microseconds a kernel.",
        verdict(report),
        *filter(None, [report.note, _fitted(report)]),
        f"{head}\n|---|---|---|{10 * '--:|'}\n" + "\n".join(map(_line, report.rows)),
    ]
    return "\n\n".join(lines) + "\n"


def _fitted(report: Report) -> str:
    if report.fitted is None:
        return ""
    single, half, bandwidth, kernel = report.fitted
    return (
        f"All rows are met best with {single:.0%} of the peak in float32, {half:.0%} in bfloat16, {bandwidth:.0%} of "
        f"the bandwidth and {kernel * 1e6:.0f} microseconds a kernel."
    )


def _line(row: Row) -> str:
    cells = [row.study, row.name, row.precision, f"{row.predicted_bytes / 1e9:.2f}"]
    held = row.allocated_bytes
    cells += [row.error or "–", "–"] if held is None else [f"{held / 1e9:.2f}", f"{row.predicted_bytes / held:.2f}"]
    cells += _times(row.predicted_s, row.step_s)
    cells.append(f"{row.flops / row.step_s.median / 1e12:.1f}" if row.step_s else "–")
    return f"| {' | '.join([*cells, *_times(row.predicted_eval_s, row.eval_s)])} |"


def _times(predicted_s: float, took: Spread | None) -> list[str]:
    told = f"{predicted_s * 1e3:,.1f}"
    return [told, "–", "–"] if took is None else [told, f"{took.median * 1e3:,.1f}", f"{predicted_s / took.median:.2f}"]
