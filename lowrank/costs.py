"""What studies and runs will take at a scale that uses GPUs, as rows: one of each study, or one of each run.

`python -m lowrank.costs` writes the table of docs/cluster.md; a test compares it with what would be written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from lowrank.cards import data_card, model_card
from lowrank.estimate import Estimate, estimate, split_rows
from lowrank.files import REPOSITORY, write_text
from lowrank.gpus import BANDWIDTH_EFFICIENCY, EFFICIENCY, KERNEL_S, GpuFacts, gpu_facts
from lowrank.models.load import skeleton
from lowrank.plan import print_plan
from lowrank.site import Site, read_site
from lowrank.spec import DataSpec, EvalSpec, ModelSpec, RunSpec
from lowrank.strict import parse

PAGE = REPOSITORY / "docs" / "cluster.md"
MARKED = re.compile(r"(<!-- costs -->\n).*?(<!-- /costs -->)", re.DOTALL)

GB = 10**9
TOKEN_BYTES = 4

Plan = dict[str, Any]


def estimates(plan: Plan, gpu: GpuFacts) -> dict[str, Estimate]:
    """What each run of a plan takes of a GPU.

    Raises:
        ConfigError: a data card without rows, or a precision that the GPU does not have.
    """
    found = {}
    for pack in plan["packs"].values():
        asked = [parse(EvalSpec, plan["evaluations"][name]["spec"], name) for name in pack["evaluations"]]
        for run in pack["members"]:
            spec = parse(RunSpec, plan["runs"][run]["spec"], run)
            found[run] = estimate(spec, asked, gpu, pack["keep_weights"])
    return found


def study_rows(plan: Plan, gpu: GpuFacts) -> list[dict[str, Any]]:
    """What each study takes, then all of them; what several share counts under each, and once in the sum.

    Returns:
        `study`, `runs`, `packs`, `gpu_hours`, `longest_pack_hours`, `flops`, `peak_bytes` (of the run that needs
        most), `disk_bytes`.
    """
    found = estimates(plan, gpu)
    studies = {name: [name] for name in plan["studies"]} | {"all": list(plan["studies"])}
    return [{"study": name, **_sums(plan, found, owners)} for name, owners in studies.items()]


def run_rows(plan: Plan, gpu: GpuFacts) -> list[dict[str, Any]]:
    """What each run takes: `run`, `study`, parameters, bytes by category, `peak_bytes`, `flops`, `gpu_hours`."""
    rows = []
    for run, found in estimates(plan, gpu).items():
        sizes = found.forecast
        rows.append(
            {
                "run": run,
                "study": ", ".join(plan["runs"][run]["owners"]),
                "parameters": sizes.parameters,
                "trainable_parameters": sizes.trainable_parameters,
                "optimizer_bytes": sizes.optimizer_bytes,
                "activation_bytes": sizes.activation_bytes,
                "peak_bytes": sizes.peak_bytes,
                "steps": found.steps,
                "flops": found.flops,
                "gpu_hours": found.seconds / 3600,
            }
        )
    return rows


def told(plan: Plan, runs: bool) -> str:
    """A plan for a person: its packs and, where they use GPUs, what they take of the site's, or what each run takes."""
    packs = "" if runs else print_plan(plan)
    if not any(pack["gpus"] for pack in plan["packs"].values()):
        return packs or f"scale {plan['scale']} uses no GPU, so what its runs take is not estimated"
    site = read_site()
    gpu = site.gpu.facts()
    rows = run_rows(plan, gpu) if runs else study_rows(plan, gpu)
    lines = _lines(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
    return "\n".join(filter(None, [packs, text, "" if runs else time_limits(plan, site), assumptions(gpu)]))


def time_limits(plan: Plan, site: Site) -> str:
    """What becomes of packs that take longer than a job may, as a sentence."""
    hours, counts = site.max_runtime_minutes / 60, [site.jobs_for(pack["expected_minutes"]) for pack in _packs(plan)]
    limited = f"No job asks for more than {hours:g} hours (max_runtime_minutes of site.yaml)"
    split = [count for count in counts if count > 1]
    if not split:
        return f"{limited}; no pack is expected to take longer."
    return (
        f"{limited}. {len(split)} of {len(counts)} packs are expected to take longer, the longest {max(split)} jobs: "
        f"each job is told before its limit, saves, and the next goes on from there, {sum(counts)} jobs in all."
    )


def assumptions(gpu: GpuFacts) -> str:
    """What hours and bytes rest on, as a sentence."""
    bf16 = "" if gpu.bf16_tflops is None else f", {gpu.bf16_tflops:g} in bfloat16"
    peaks = f"{gpu.fp32_tflops:g} TFLOP/s in float32{bf16}"
    return (
        f"Hours on one {gpu.name}: products at {EFFICIENCY:.0%} of its peak ({peaks}), everything else at "
        f"{BANDWIDTH_EFFICIENCY:.0%} of {gpu.bandwidth_gb_s:,.0f} GB/s, and {KERNEL_S * 1e6:.0f} microseconds or more "
        "for a kernel; docs/gpu.md has what of this was measured. Every row is taken to be as long as it may be, every "
        "evaluation as one pass over its rows, every run as if it were alone."
    )


def table(plan: Plan, gpu: GpuFacts) -> str:
    """The rows of the studies as Markdown."""
    rows = study_rows(plan, gpu)
    head, *rest = _lines(rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---", *["--:"] * (len(head) - 1)], *rest))


def _lines(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Rows as text, their names first."""
    return [[*map(_head, rows[0])], *([_cell(name, value) for name, value in row.items()] for row in rows)]


def _head(name: str) -> str:
    return {"gpu_hours": "GPU hours", "flops": "FLOPs"}.get(name, name.removesuffix("_bytes").replace("_", " "))


def _cell(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return f"{value / GB:,.1f} GB" if value >= GB / 10 else f"{value / 1e6:,.1f} MB"
    if name == "flops":
        return f"{value:.1e}"
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _sums(plan: Plan, found: Mapping[str, Estimate], owners: Iterable[str]) -> dict[str, Any]:
    wanted = set(owners)
    packs = [pack for pack in _packs(plan) if wanted & set(pack["owners"])]
    runs = {run: found[run] for run in plan["runs"] if wanted & set(plan["runs"][run]["owners"])}
    data = {name for pack in packs for name in (pack["data"], *pack["evaluations"].values())}
    specs = {run: parse(RunSpec, plan["runs"][run]["spec"], run) for run in runs}
    disk = _model_bytes(specs.values()) + sum(_prepared_bytes(plan["data"][name]) for name in data)
    fetched = {plan["data"][name]["spec"]["card"] for name in data}
    disk += round(GB * sum(data_card(card).size.files_gb or 0 for card in fetched))
    disk += sum(run.results_bytes for run in runs.values())
    disk += max((run.work_bytes for run in runs.values()), default=0)
    return {
        "runs": len(runs),
        "packs": len(packs),
        "gpu_hours": sum(run.seconds for run in runs.values()) / 3600,
        "longest_pack_hours": max((pack["expected_minutes"] for pack in packs), default=0.0) / 60,
        "flops": sum(run.flops for run in runs.values()),
        "peak_bytes": max((run.forecast.peak_bytes for run in runs.values()), default=0),
        "disk_bytes": disk,
    }


def _packs(plan: Plan) -> list[dict[str, Any]]:
    return list(plan["packs"].values())


def _model_bytes(specs: Iterable[RunSpec]) -> int:
    """Of the files of pretrained models, in the type that their runs hold them in."""
    held = {spec.model.card: (spec.model, spec.task) for spec in specs}
    fetched = [(model, task) for model, task in held.values() if model_card(model.card).init == "pretrained"]
    bases = [skeleton(ModelSpec(card=model.card, dtype=model.dtype), task, 2) for model, task in fetched]
    return sum(parameter.nbytes for base in bases for parameter in base.parameters())


def _prepared_bytes(entry: Mapping[str, Any]) -> int:
    spec = parse(DataSpec, entry["spec"], "plan")
    card = data_card(spec.card)
    rows = sum(split_rows(spec, card).values())
    if card.image is not None:
        return rows * card.image.channels * card.image.height * card.image.width
    return rows * spec.max_length * TOKEN_BYTES


def show(text: str) -> str:
    """A page with what stands between its markers written anew, for an A100 with 80 GB and paper scale."""
    from lowrank.planning import make_plan
    from lowrank.study import studies

    gpu = gpu_facts(None, 80)
    plan = make_plan("paper", studies())
    block = f"{table(plan, gpu)}\n\n{time_limits(plan, Site())}\n\n{assumptions(gpu)}\n"
    return MARKED.sub(lambda match: match[1] + block + match[2], text)


if __name__ == "__main__":
    write_text(PAGE, show(PAGE.read_text(encoding="utf-8")))
