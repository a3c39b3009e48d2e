"""Holds what `lowrank plan` predicts to what is measured: a run's peak memory, and the time of its step.

    python -m benchmarks.plan            # writes results/plan.json and results/plan.md

Three runs calibrate this machine: operations a second, bytes a second, seconds a kernel. All others are predicted. It
takes about four minutes of one core.
"""

from __future__ import annotations

import itertools
import math
import os
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.isolated import isolated
from benchmarks.measured import MeasuredRun
from benchmarks.records import Spread
from lowrank.files import read_json, write_json, write_text
from lowrank.measure import PeakMemory, device_facts
from lowrank.measure.forecast import forecast
from lowrank.measure.storages import model_tensors, storage_bytes
from lowrank.measure.tally import Work, seconds
from lowrank.provenance import provenance
from lowrank.spec import RunSpec
from lowrank.strict import Strict, parse

RESULT = Path(__file__).with_name("results") / "plan.json"

MEMORY, TIME = 0.05, 0.20
"""How far a prediction may be from what is measured."""

ROUNDS = 5


def run(card: str, chain: Any, rows: int, tokens: int, layers: int | None = None, **train: Any) -> RunSpec:
    """A run of one of the studies' models, cut to a size that a CPU steps through in seconds."""
    language = card.startswith(("llama", "wiki_llama", "gpt2"))
    return RunSpec.model_validate(
        {
            "task": "causal_lm" if language else "classification",
            "model": {"card": card, "layers": layers},
            "data": {"card": "wiki_text" if language else "wiki_sciences", "max_length": tokens},
            "chain": chain,
            "train": {"lr": 1e-3, "steps": 100, "batch_size": rows, **train},
        }
    )


def lora(rank: int = 8) -> list[dict[str, Any]]:
    """The chain of LoRA alone."""
    return [{"part": "lora", "rank": rank}]


CALIBRATION = {
    "DistilBERT, lora, 8 x 64": run("distilbert", lora(), 8, 64),
    "LLaMA 60M of 4 layers, full+galore, 4 x 128": run("llama_60m", "full+galore", 4, 128, layers=4),
    "LLaMA of 0.9M, full, 4 x 32": run("wiki_llama", "full", 4, 32),
}
"""Bound by products, by memory, and by the start of kernels."""

PREDICTED = {
    "DistilBERT, lora of rank 64, 8 x 64": run("distilbert", lora(64), 8, 64),
    "DistilBERT, lora, 16 x 64": run("distilbert", lora(), 16, 64),
    "DistilBERT, lora, 8 x 128": run("distilbert", lora(), 8, 128),
    "DistilBERT, full, 8 x 64": run("distilbert", "full", 8, 64),
    "DistilBERT, nf4+lora, 8 x 64": run("distilbert", ["nf4", *lora()], 8, 64),
    "MiniLM, lora, 8 x 32": run("minilm", lora(), 8, 32),
    "MiniLM, lora, 32 x 32": run("minilm", lora(), 32, 32),
    "MiniLM, full, 8 x 64": run("minilm", "full", 8, 64),
    "MiniLM of 2 layers, lora, 4 x 12": run("minilm", lora(), 4, 12, layers=2),
    "LLaMA of 0.9M, lora, 16 x 64": run("wiki_llama", lora(), 16, 64),
    "LLaMA 60M of 4 layers, full, 4 x 128": run("llama_60m", "full", 4, 128, layers=4),
    "LLaMA 60M of 4 layers, lora, 4 x 128": run("llama_60m", lora(), 4, 128, layers=4),
    "GPT-2 of 2 layers, full, 4 x 64": run("gpt2_124m", "full", 4, 64, layers=2),
}


class Row(Strict):
    """One run: predicted beside measured. Bytes are those of a step's peak, weights included."""

    name: str
    calibrates: bool
    predicted_bytes: int
    allocator_bytes: int
    """What torch's allocator counts."""
    resident_bytes: int | None
    """Growth of the process's resident memory over the steps, plus the weights: heaps and libraries included."""
    predicted_s: float
    measured_s: Spread
    """CPU seconds of a step, one thread."""

    @property
    def memory(self) -> float:
        """Predicted over counted bytes."""
        return self.predicted_bytes / self.allocator_bytes

    @property
    def time(self) -> float:
        """Predicted over measured seconds."""
        return self.predicted_s / self.measured_s.median


class Report(Strict):
    """One run of the benchmark."""

    date: str
    commit: str | None
    cpu: str
    load: tuple[float, float]
    flops_per_s: float
    bytes_per_s: float
    kernel_s: float
    rows: tuple[Row, ...]


def measured(spec: RunSpec) -> tuple[int, int | None, list[float]]:
    """Peak by the allocator, peak resident, CPU seconds of steps."""
    subject = MeasuredRun(spec)
    weights = storage_bytes(model_tensors(subject.model))
    with PeakMemory() as peak:
        times = subject.seconds(ROUNDS)
    resident = None if peak.rss_growth_bytes is None else peak.rss_growth_bytes + weights
    return subject.peak_bytes(), resident, times


def predicted(spec: RunSpec) -> tuple[int, Work]:
    """Peak and kernels of a step."""
    found = forecast(spec, 100, 1)
    return found.peak_bytes - found.kept_bytes, tuple(sorted([*found.micro_batch, *found.update]))


def calibrate(works: list[tuple[Work, float]]) -> tuple[float, float, float]:
    """The three speeds with which some steps take what was measured, by least squares of the logarithms on a grid."""

    def grid(low: float, high: float, points: int) -> list[float]:
        return [low * (high / low) ** (index / (points - 1)) for index in range(points)]

    speeds = itertools.product(grid(2e10, 1e12, 36), grid(2e9, 1e11, 24), grid(1e-6, 5e-5, 16))
    return min(speeds, key=lambda each: sum(math.log(seconds(work, *each) / took) ** 2 for work, took in works))


def benchmark() -> Report:
    """Measures everything, calibrates, predicts."""
    before, rows = os.getloadavg()[0], []
    for name, spec in {**CALIBRATION, **PREDICTED}.items():
        (allocated, resident, times), _ = isolated(measured, spec)
        (peak, work), _ = isolated(predicted, spec)
        rows.append((name, allocated, resident, Spread.of(times), peak, work))
        print(name, flush=True)
    speeds = calibrate([(row[5], row[3].median) for row in rows if row[0] in CALIBRATION])
    return Report(
        date=date.today().isoformat(),
        commit=provenance()["commit"],
        cpu=str(device_facts()["cpu_model"]),
        load=(before, os.getloadavg()[0]),
        flops_per_s=speeds[0],
        bytes_per_s=speeds[1],
        kernel_s=speeds[2],
        rows=tuple(
            Row(
                name=name,
                calibrates=name in CALIBRATION,
                predicted_bytes=peak,
                allocator_bytes=allocated,
                resident_bytes=resident,
                predicted_s=seconds(work, *speeds),
                measured_s=times,
            )
            for name, allocated, resident, times, peak, work in rows
        ),
    )


def verdict(report: Report) -> str:
    """How many predictions are near enough, as sentences; docs/cluster.md has them too."""
    told = [row for row in report.rows if not row.calibrates]
    near = sum(abs(row.time - 1) <= TIME for row in told)
    exact = sum(abs(row.memory - 1) <= MEMORY for row in report.rows)
    return (
        f"Memory within {MEMORY:.0%}: {exact} of {len(report.rows)}. Time within {TIME:.0%}: {near} of the {len(told)} "
        "runs that did not calibrate."
    )


def markdown(report: Report) -> str:
    """results/plan.md."""
    lines = [
        "# What is planned, and what is measured",
        f"Written by `python -m benchmarks.plan` from `plan.json`, {report.date}. One step of each run, one thread, on "
        f"{report.cpu}, load {report.load[0]:.1f} to {report.load[1]:.1f}. Memory: most bytes that torch's allocator "
        f"holds during a step. Time: median CPU seconds of {report.rows[0].measured_s.rounds} steps with their "
        "quartiles; predicted from three calibrating runs, marked *.",
        f"{verdict(report)} Resident memory, which holds what libraries and heaps keep, stands beside it.",
        f"Calibrated: {report.flops_per_s / 1e9:.0f} GFLOP/s, {report.bytes_per_s / 1e9:.1f} GB/s, "
        f"{report.kernel_s * 1e6:.1f} microseconds a kernel.",
        "| run | peak MB, predicted | allocator | predicted / allocator | resident MB | step ms, predicted | measured "
        "| predicted / measured | |\n|---|--:|--:|--:|--:|--:|--:|--:|---|\n" + "\n".join(map(_line, report.rows)),
    ]
    return "\n\n".join(lines) + "\n"


def _line(row: Row) -> str:
    took = row.measured_s.scaled(1e3)
    resident = "not known" if row.resident_bytes is None else f"{row.resident_bytes / 1e6:,.0f}"
    missed = abs(row.memory - 1) > MEMORY or (abs(row.time - 1) > TIME and not row.calibrates)
    cells = [
        row.name + " *" * row.calibrates,
        f"{row.predicted_bytes / 1e6:,.1f}",
        f"{row.allocator_bytes / 1e6:,.1f}",
        f"{row.memory:.3f}",
        resident,
        f"{row.predicted_s * 1e3:,.1f}",
        f"{took.median:,.1f} [{took.low:,.1f}, {took.high:,.1f}]",
        f"{row.time:.2f}",
        "missed" * missed,
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Runs the benchmark and writes what it found."""
    torch.set_num_threads(1)
    write_json(RESULT, benchmark().model_dump(mode="json"))
    write_text(RESULT.with_suffix(".md"), markdown(parse(Report, read_json(RESULT), str(RESULT))))


if __name__ == "__main__":
    main()
