"""Holds what `lowrank plan` says of paper scale to a GPU: every kind of run that the studies ask for, one step each.

    python -m benchmarks.plan_gpu        # needs a CUDA GPU; writes results/plan_gpu.json and results/plan_gpu.md

Nothing is fetched: models have their architecture's shapes and random weights, batches random tokens as long as they
may be. It takes about eight minutes of an H100.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import time
from collections.abc import Iterable
from datetime import date
from pathlib import Path

import numpy as np
import torch

from benchmarks.device import device, on_gpu
from benchmarks.measured import MeasuredRun
from benchmarks.plan_gpu_page import ROUNDS, Report, Row, markdown, verdict
from benchmarks.records import Spread
from lowrank import registry
from lowrank.asked import key
from lowrank.cards import model_card
from lowrank.console import progress
from lowrank.errors import ConfigError
from lowrank.files import read_json, write_json, write_text
from lowrank.forecasts import eval_rows, forecast_of, question
from lowrank.gpus import GIB, GpuFacts, gpu_facts, speed
from lowrank.measure import PeakMemory, device_facts
from lowrank.measure.tally import Work, flops, seconds
from lowrank.provenance import provenance
from lowrank.spec import PartOptions, RunSpec
from lowrank.strict import parse
from lowrank.study import SCALES, load_study, points, studies

RESULT = Path(__file__).with_name("results") / "plan_gpu.json"

SHARES = [number / 20 for number in range(3, 25)]
"""Of a peak, that `fit` tries; above one where a cache serves what memory is taken to."""

ENOUGH = 50
"""Times that `fit` needs for its four numbers."""

MICROSECONDS = [2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 22, 27]
"""For a kernel, that `fit` tries."""


def kinds() -> dict[str, tuple[str, RunSpec]]:
    """What the studies ask at the scales that use GPUs, each kind once: what decides its sizes -> (studies, a run)."""
    found: dict[str, tuple[str, RunSpec]] = {}
    for name in studies():
        study = load_study(name)
        for scale in SCALES:
            if scale in study.scales and study.scales[scale].gpus:
                for point in points(study, scale):
                    asked = key(question(point.spec))
                    owners, spec = found.get(asked, ("", point.spec))
                    if name not in owners.split(", "):
                        owners = ", ".join(filter(None, [owners, name]))
                    found[asked] = (owners, spec)
    return found


def told(spec: RunSpec) -> str:
    """A run in a few words."""
    rows = spec.train.micro_batch_size or spec.train.batch_size
    chain = "+".join(f"{part.part}({_options(part)})" for part in spec.chain).replace("()", "")
    pictures = "image_size" in model_card(spec.model.card).config
    size = "" if pictures else f" x {spec.data.max_length}"
    recomputed = ", recomputed" if spec.model.gradient_checkpointing else ""
    return f"{model_card(spec.model.card).name}, {chain}, {rows}{size}{recomputed}"


def _options(part: PartOptions) -> str:
    """What of a part's options decides sizes, and is not its default."""
    varies = registry.part(part.part).varies - {"rank"}
    told = part.model_dump(mode="json", exclude_defaults=True)
    return ", ".join(f"{name} {_short(value)}" for name, value in told.items() if name not in {*varies, "part"})


def _short(value: object) -> str:
    return f"of {len(value)} kinds" if isinstance(value, list) and isinstance(value[0], str) else str(value)


def measured(spec: RunSpec) -> tuple[int, Spread | None, Spread]:
    """Peak by the allocator, and seconds of steps and of evaluations."""
    subject = MeasuredRun(spec)
    with PeakMemory(device()) as peak:
        steps = None if spec.train.steps == 0 else Spread.of(subject.seconds(ROUNDS))
        scores = Spread.of(subject.eval_seconds(eval_rows(spec), ROUNDS))
    assert peak.cuda_bytes is not None
    return peak.cuda_bytes, steps, scores


def row(kind: str, study: str, spec: RunSpec) -> Row:
    """One kind of run, measured; predictions come later."""
    allocated, took, scored, error = None, None, None, ""
    try:
        allocated, took, scored = measured(spec)
    except (RuntimeError, ConfigError) as failure:  # one that cannot be measured must not cost the others
        error = f"{type(failure).__name__}: {str(failure).splitlines()[0].partition('. ')[0]}"
    gc.collect()
    torch.cuda.empty_cache()
    return Row(
        kind=kind,
        study=study,
        name=told(spec),
        precision="fp32" if (spec.train.precision, spec.model.dtype) == ("fp32", "float32") else "bf16",
        allocated_bytes=allocated,
        step_s=took,
        eval_s=scored,
        error=error,
    )


def with_predictions(report: Report) -> Report:
    """The same measurements beside what is predicted now; a kind of run that no study asks for any more is left out."""
    asked, gpu = kinds(), gpu_facts(report.gpu, report.memory_gb)
    rows, taken = [], []
    for each in report.rows:
        if each.kind not in asked:
            continue
        found = forecast_of(asked[each.kind][1])
        step = tuple(sorted([*found.micro_batch, *found.update]))
        speeds = speed(gpu, each.precision)
        predictions = {
            "predicted_bytes": found.peak_bytes - found.kept_bytes,
            "predicted_s": seconds(step, *speeds),
            "predicted_eval_s": seconds(found.eval_batch, *speeds),
            "flops": flops(step),
        }
        rows.append(each.model_copy(update=predictions))
        works = (step, each.step_s), (found.eval_batch, each.eval_s)
        taken += [(work, each.precision, took.median) for work, took in works if took]
    return report.model_copy(update={"rows": tuple(rows), "fitted": fit(taken, gpu) if len(taken) >= ENOUGH else None})


def fit(rows: Iterable[tuple[Work, str, float]], gpu: GpuFacts) -> tuple[float, float, float, float]:
    """The shares and the seconds a kernel with which steps take what was measured, by least squares of logarithms."""
    measured = list(rows)
    peaks = {"fp32": 1e12 * gpu.fp32_tflops, "bf16": 1e12 * (gpu.bf16_tflops or gpu.fp32_tflops)}
    known = {
        precision: [(np.array(work).T, np.log(took)) for work, asked, took in measured if asked == precision]
        for precision in peaks
    }

    def off(precision: str, share: float, bandwidth: float, kernel: float) -> float:
        """The sum of squares; `lowrank.measure.tally.seconds`, on arrays."""
        total = 0.0
        for (operations, moved, count), took in known[precision]:
            bound = np.maximum(operations / (share * peaks[precision]), moved / (bandwidth * gpu.bandwidth_gb_s * 1e9))
            total += (np.log(count @ np.maximum(bound, kernel)) - took) ** 2
        return float(total)

    found = []
    for bandwidth, kernel in itertools.product(SHARES, MICROSECONDS):
        best = {
            precision: min((off(precision, share, bandwidth, 1e-6 * kernel), share) for share in SHARES)
            for precision in peaks
        }
        total = sum(squares for squares, _ in best.values())
        found.append((total, (best["fp32"][1], best["bf16"][1], bandwidth, 1e-6 * kernel)))
    return min(found)[1]


def benchmark(limit_s: float) -> Report:
    """Measures every kind of run, the largest first, until the time is over."""
    name, began = str(device_facts()["gpu"]), time.monotonic()
    asked = sorted(kinds().items(), key=lambda each: -forecast_of(each[1][1]).peak_bytes)
    found = []
    for kind, (study, spec) in progress(asked, total=len(asked), start=0, label="kinds of run"):
        if time.monotonic() - began < limit_s:
            found.append(row(kind, study, spec))
    return Report(
        date=date.today().isoformat(),
        commit=provenance()["commit"],
        gpu=name,
        memory_gb=round(torch.cuda.get_device_properties(0).total_memory / GIB),
        torch=torch.__version__,
        minutes=(time.monotonic() - began) / 60,
        asked=len(asked),
        rows=tuple(found),
    )


def main() -> None:
    """Runs the benchmark and writes what it found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan_gpu", description="The plan, held to a GPU.")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop measuring after so long")
    parser.add_argument("--output", type=Path, default=RESULT, help="a JSON file; a page of the same name lies beside")
    parser.add_argument("--again", action="store_true", help="measure nothing: predict anew beside what was measured")
    asked = parser.parse_args()
    if asked.again:
        report = parse(Report, read_json(asked.output), str(asked.output))
    elif on_gpu():
        report = benchmark(60 * asked.minutes)
        write_json(asked.output, report.model_dump(mode="json"))
    else:
        raise SystemExit("benchmarks.plan_gpu: no CUDA GPU here; allowed: a machine with one, or --again")
    report = with_predictions(report)
    write_json(asked.output, report.model_dump(mode="json"))
    write_text(asked.output.with_suffix(".md"), markdown(report))
    print(verdict(report))


if __name__ == "__main__":
    main()
