"""All methods beside their peers, in one run: `python -m benchmarks.methods`.

Writes benchmarks/results/methods.json and the tables that show it; with a GPU everything is measured on it, and
results/methods_gpu.json written. `--only` shows some sections, and with `--again`
puts them into that result, where they then say when they were measured. `--quick` runs everything on tiny shapes in
seconds, to see that it works; such figures mean nothing and are written nowhere unless `--output` says where.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

from benchmarks.device import on_gpu
from benchmarks.isolated import isolated
from benchmarks.models import FULL, GPU, QUICK, Size, multiplies_bf16
from benchmarks.records import Report, Section
from benchmarks.sections import galore, hira_velora, lora, lte, nf4, peak, precision, sparse
from benchmarks.tables import RESULT, RESULT_GPU, load, tables, write_pages
from lowrank.errors import ConfigError
from lowrank.files import write_json
from lowrank.measure import device_facts
from lowrank.methods.bnb import bnb
from lowrank.provenance import provenance

SECTIONS: dict[str, Callable[[Size], Section]] = {
    "lora": lora.distilbert,
    "lora_small": lora.small,
    "lora_llama": lora.llama,
    "precision": precision.run,
    "hira_velora": hira_velora.run,
    "nf4": nf4.run,
    "galore": galore.run,
    "lte": lte.run,
    "sparse": sparse.run,
    "peak": peak.run,
}
PEERS = ("peft", "galore_torch")
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "galore-torch")


def measure(size: Size, names: list[str]) -> Report:
    """Runs the sections of these names."""
    device, bf16 = device_facts(), multiplies_bf16()
    bnb()
    for peer in PEERS:  # here, since each section starts as a copy of this process
        importlib.import_module(peer)
    before, cpu_s = os.getloadavg()[0], 0.0
    sections: list[Section] = []
    for name in names:
        if name == "precision" and not (bf16 or size.quick):
            continue
        section, seconds = isolated(SECTIONS[name], size)
        sections.append(section)
        cpu_s += seconds
        print(f"{name}: {seconds:.0f} CPU seconds", file=sys.stderr)
    return Report(
        date=date.today().isoformat(),
        commit=provenance()["commit"],
        quick=size.quick,
        cpu=str(device["cpu_model"]),
        cores=int(device["cores"] or 0),
        gpu=None if device["gpu"] is None else str(device["gpu"]),
        bf16=bf16,
        load=(before, os.getloadavg()[0]),
        cpu_s=cpu_s,
        versions={package: version(package) for package in PACKAGES},
        sections=tuple(sections),
    )


def replaced(old: Report, new: Report) -> Report:
    """The old result with the sections of the new one.

    Raises:
        ConfigError: the new one is of another machine or of other packages.
    """
    for what in ("cpu", "cores", "gpu", "bf16", "versions"):
        before, now = getattr(old, what), getattr(new, what)
        if before != now:
            raise ConfigError(f"benchmarks: {what} {now!r}, the result has {before!r}; allowed: a run of all sections")
    fresh = {s.title: s.model_copy(update={"again": f"{new.date} at {new.commit}"}) for s in new.sections}
    return old.model_copy(update={"sections": tuple(fresh.get(s.title, s) for s in old.sections)})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description="All methods beside their peers.")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: whether everything runs")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="some sections, shown only")
    parser.add_argument("--again", action="store_true", help="put the sections into the committed result")
    parser.add_argument("--output", type=Path, help=f"a JSON file; otherwise {RESULT.name}, for a run that is whole")
    told = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    size, result = (GPU, RESULT_GPU) if on_gpu() else (FULL, RESULT)
    report = measure(QUICK if told.quick else size, told.only)
    print(tables(report))
    whole = not told.quick and set(told.only) == set(SECTIONS)
    if told.again and not told.quick:
        write_json(result, replaced(load(result), report).model_dump())
        write_pages()
    elif told.output or whole:
        write_json(told.output or result, report.model_dump())
    if whole and not told.output:
        write_pages()


if __name__ == "__main__":
    main()
