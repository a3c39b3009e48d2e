"""The LR-ratio document's command line: one method over several learning rates, into its results.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowrank import jobs
from lowrank.console import say
from lowrank.errors import ConfigError
from lowrank.files import MANIFEST, read_json, write_json
from lowrank.planning import Planner
from lowrank.report.export import epoch_losses
from lowrank.run_folder import EVALUATIONS, HISTORY, RUNS
from lowrank.spec import EvalSpec, RunSpec
from lowrank.strict import NonNegativeInt, PositiveFloat, PositiveInt, Strict, parse, suggest
from lowrank.study import load_study

STUDY = "lr_ratio"


class Sweep(Strict):
    """What the document's command line can be told."""

    lrs: tuple[PositiveFloat, ...]
    epochs: PositiveInt
    rank: PositiveInt
    alpha: PositiveFloat
    batch_size: PositiveInt
    seed: NonNegativeInt
    full_finetune: bool


def specs(asked: Sweep, scale: Any) -> list[RunSpec]:
    """The runs of a sweep: the study's model, data and protocol, with the given numbers.

    Raises:
        ConfigError: no such scale.
    """
    study = load_study(STUDY)
    if scale not in study.scales:
        raise ConfigError(f"lowrank sweep: unknown scale {scale!r}{suggest(scale, study.scales)}")
    chain = (
        [{"part": "full"}]
        if asked.full_finetune
        else [{"part": "lora", "rank": asked.rank, "alpha": asked.alpha, "head": "adapted"}]
    )
    base = study.scales[scale].base
    train = {k: v for k, v in base["train"].items() if k not in ("epochs", "steps", "lr", "batch_size")}
    told = {"epochs": asked.epochs, "batch_size": asked.batch_size}
    return [
        parse(RunSpec, {**base, "chain": chain, "seed": asked.seed, "train": {**train, **told, "lr": lr}}, "sweep")
        for lr in asked.lrs
    ]


def run_sweep(asked: Sweep, scale: Any, out: Path, threads: int) -> None:
    """Trains and scores the sweep as one pack, then writes `out` in the document's own shape.

    Args:
        asked: the numbers of the command line.
        scale: smoke, laptop or paper; decides model and data.
        out: the JSON file.
        threads: CPU threads.
    """
    planner = Planner(scale)
    runs = [planner.add_run(spec, "sweep", keep_weights=True) for spec in specs(asked, scale)]
    given = load_study(STUDY).scales[scale]
    planner.add_packs("sweep", ["lr"], {"test": EvalSpec()}, len(runs), given.mem_mb, gpus=given.gpus)
    plan = planner.plan()
    for card in plan["cards"]:
        jobs.fetch(card)
    for data in plan["data"]:
        jobs.prepare(plan, data)
    for pack in plan["packs"].values():
        jobs.train(plan, pack["name"], threads)
        for evaluation in pack["evaluations"]:
            jobs.evaluate(plan, pack["name"], evaluation, threads)
    write_json(out, {str(lr): result(run, plan) for lr, run in zip(asked.lrs, runs, strict=True)})
    say(f"wrote {out}")


def result(run: str, plan: dict[str, Any]) -> dict[str, Any]:
    """One learning rate in the document's shape; null where a run diverged."""
    train_losses, val_losses = epoch_losses(RUNS / run / HISTORY)
    (evaluation,) = plan["evaluations"]
    score = read_json(RUNS / run / EVALUATIONS / f"{evaluation}.json")
    return {
        "best_val_loss": read_json(RUNS / run / MANIFEST)["metrics"]["best_val_loss"],
        "test_acc": score["metrics"].get("accuracy"),
        "train_losses": train_losses,
        "val_losses": val_losses,
    }
