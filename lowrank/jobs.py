"""What one job of the workflow does, told by the plan.

Imports stand inside the functions: fetching must not pay for torch, nor training for pandas.
"""

from __future__ import annotations

import functools
import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank.cards import card_names, data_card, model_card
from lowrank.console import silence
from lowrank.errors import ConfigError
from lowrank.files import MANIFEST, seal
from lowrank.run_folder import EVALUATIONS, WORK, forget
from lowrank.signals import StopFlag
from lowrank.spec import DataSpec, EvalSpec, RunSpec
from lowrank.strict import parse, suggest
from lowrank.verify import PREPARED, REPORTS, RESULTS, STUDIES, seal_pages

if TYPE_CHECKING:
    from lowrank.report.views import Views
    from lowrank.train.together import Member, Trained

FORCED = WORK / "forced"
"""Marks that the workflow leaves at its start for runs that `--forcerun` names."""

BENCHMARKS = Path("logs/benchmarks")
"""Where Snakemake writes what each job took."""


def fetch(card: str) -> None:
    """Fetches a model or data card."""
    from lowrank.data.fetch import fetch as fetch_card

    models, data = card_names("models"), card_names("data")
    if card not in models + data:
        raise ConfigError(f"unknown card {card!r}{suggest(card, models + data)}")
    fetch_card(model_card(card) if card in models else data_card(card))


def prepare(plan: dict[str, Any], name: str) -> None:
    """Prepares data of the plan."""
    StopFlag(at_once=True).install()
    from lowrank.data.fetch import DOWNLOADS
    from lowrank.data.prepare import prepare as prepare_data

    entry = plan["data"][name]
    prepare_data(parse(DataSpec, entry["spec"], f"plan: {name}"), entry["model"], DOWNLOADS, PREPARED / name)


def train(plan: dict[str, Any], name: str, threads: int, processes: int = 1) -> None:
    """Trains a pack, or starts several processes that do; scores it too where its weights are not kept."""
    if processes > 1:
        from lowrank.launch import launch

        launch(["train", name, "--threads", str(threads)], processes)
        return
    stop = StopFlag().install()  # before imports that take seconds
    from lowrank.evaluate.pack import score_in_training
    from lowrank.measure import keep_freed_memory
    from lowrank.train.pack import Pack, follow, train_pack
    from lowrank.train.ranks import join

    keep_freed_memory()
    entry = plan["packs"][name]
    prepared = PREPARED / entry["data"]
    ranks = join()
    # Without weights nothing can be scored later, so it is done here.
    scored_here = {
        name: (_evaluation(plan, name), PREPARED / data)
        for name, data in entry["evaluations"].items()
        if not entry["keep_weights"]
    }
    pack = Pack(
        name,
        tuple(_member(plan, run) for run in entry["members"]),
        tuple(tuple(stack["members"]) for stack in entry["stacks"]),
        prepared,
        keep_weights=entry["keep_weights"],
        scores=tuple(f"{EVALUATIONS}/{evaluation}.json" for evaluation in scored_here),
        threads=max(1, threads // ranks.count),
        processes=ranks.count,
    )
    if not ranks.first:
        silence()
        follow(pack, stop, ranks)
        return

    def after(member: Member, trained: Trained, folder: Path) -> None:
        poll = functools.partial(stop.check, f"{member.run} is trained; scoring it starts again")
        codes = {name: _scoring_code(plan, entry, name) for name in scored_here}
        ended = trained.state.status, trained.state.cause
        score_in_training(trained.model, trained.chain, member.spec, scored_here, codes, folder, poll, ended)

    for run in entry["members"]:
        if (FORCED / run).exists():  # the mark goes at once, so that a retry goes on from its checkpoint
            forget(run)
            (FORCED / run).unlink()
    train_pack(pack, stop, after, ranks)


def evaluate(plan: dict[str, Any], name: str, evaluation: str, threads: int) -> None:
    """Scores the members of a pack."""
    stop = StopFlag().install()
    from lowrank.evaluate.pack import evaluate_pack
    from lowrank.measure import keep_freed_memory

    keep_freed_memory()
    entry = plan["packs"][name]
    evaluate_pack(
        entry["members"],
        evaluation,
        _evaluation(plan, evaluation),
        _scoring_code(plan, entry, evaluation),
        PREPARED / entry["evaluations"][evaluation],
        stop,
        threads,
    )


def tables(plan: dict[str, Any], study: str, counted: bool = False) -> None:
    """Writes everything that is computed from a study's runs, or the tables that no run enters."""
    from lowrank.collect import collect
    from lowrank.report.build import build_study, count_study
    from lowrank.report.opened import open_study

    out = STUDIES / study
    if counted:
        gc.disable()  # millions of small objects that die by themselves: looking for others took a fifth of the time
        count_study(study, _views(study), out)
        return
    collect(plan, study, out / "runs.csv")
    (out / MANIFEST).unlink(missing_ok=True)
    asked = {entry["labels"][study]: name for name, entry in plan["evaluations"].items() if study in entry["labels"]}
    build_study(open_study(study, _views(study), out / "runs.csv", out, plan["scale"], asked=asked))
    seal(out, {"study": study, "scale": plan["scale"]})


def page(plan: dict[str, Any], study: str) -> None:
    """Renders a study's page."""
    from lowrank.report.page import render_study

    render_study(study, STUDIES / study, REPORTS / f"{study}.html", plan["scale"])
    seal_pages(study)


def index(plan: dict[str, Any]) -> None:
    """Renders the front page."""
    from lowrank.accounting import RECORD
    from lowrank.report.site import render_index
    from lowrank.report.timings import of_study, timings
    from lowrank.report.used import planned_and_used

    spent = timings(plan, BENCHMARKS)
    took = {study: of_study(plan, BENCHMARKS, study) for study in plan["studies"]}
    out = REPORTS / "index.html"
    used = planned_and_used(plan, RECORD)
    render_index(list(plan["studies"]), STUDIES, out, plan["scale"], results=RESULTS, spent=spent, took=took, used=used)
    seal_pages("index")


def partial(plan: dict[str, Any]) -> None:
    """Builds the whole report from what exists."""
    for study, entry in plan["studies"].items():
        if entry["counted"]:
            tables(plan, study, counted=True)
        tables(plan, study)
        page(plan, study)
    index(plan)


def _views(study: str) -> Views:
    """What a study shows. The plan has seen to the rest of its file, whose chains and evaluations need torch."""
    from lowrank.report.views import parse_views
    from lowrank.study import STUDIES as FILES
    from lowrank.yaml_files import read_yaml

    return parse_views(read_yaml(FILES / f"{study}.yaml"), study)


def _member(plan: dict[str, Any], run: str) -> Member:
    from lowrank.train.together import Member

    entry = plan["runs"][run]
    spec = parse(RunSpec, entry["spec"], f"plan: {run}")
    return Member(run, spec, entry["pins"], entry["code"])


def _scoring_code(plan: dict[str, Any], pack: dict[str, Any], evaluation: str) -> str:
    return f"{pack['evaluate_code']}-{plan['evaluations'][evaluation]['code']}"


def _evaluation(plan: dict[str, Any], name: str) -> EvalSpec:
    return parse(EvalSpec, plan["evaluations"][name]["spec"], f"plan: {name}")
