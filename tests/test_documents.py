"""docs/documents.md against the code: what it names exists, and what its commands make is made at smoke scale."""

from __future__ import annotations

import contextlib
import csv
import functools
from collections.abc import Iterator

import pytest

import lowrank
from lowrank import jobs, registry
from lowrank.planning import make_plan
from lowrank.run_folder import RUNS
from lowrank.study import load_study
from lowrank.verify import REPORTS, STUDIES
from tests.document_rows import Held, Row, sections, settings_in

PAGE = sections()
ROWS = [row for section in PAGE.values() for row in section.rows]

held = functools.cache(Held)


def exists(word: str, row: Row) -> bool:
    """Whether a study has what stands between backticks: settings, a name or value, a path, a chain, a function."""
    settings = settings_in(word)
    if settings is not None:
        return set(settings) <= held(row.study, "paper").settings
    if "/" in word:
        here = [str(RUNS), str(REPORTS), str(STUDIES), "workflow/studies"]
        return any(word.startswith(f"{folder}/") for folder in here)
    if "(" in word:
        return hasattr(lowrank, word.removeprefix("lowrank.").split("(")[0])
    return word in held(row.study, "paper").words or set(word.split("+")) <= registry.parts().keys()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.study}: {row.document[:40]}")
def test_what_a_row_names_is_there(row: Row) -> None:
    for word in row.ours:
        tool = word.split()[0]
        if tool in ("lowrank", "snakemake"):
            assert word.split() in PAGE[row.study].commands, f"`{word}` stands in no block, where it would be tried"
        elif tool != "make" and not word.startswith("--"):
            assert exists(word, row), f"study {row.study} has no `{word}` at paper scale"


@pytest.mark.parametrize("study", PAGE)
def test_every_setting_that_is_named_is_one_of_the_smoke_scale_too(study: str) -> None:
    names = {name for row in PAGE[study].rows for word in row.ours for name, _ in settings_in(word) or ()}
    assert names <= held(study, "smoke").words


def make(study: str) -> None:
    """Does the jobs of a study at smoke scale, each once and in an order that Snakemake could find."""
    plan = make_plan("smoke", [study])
    cards: set[str] = set()
    prepared: set[str] = set()
    # A pack whose model another one trains comes after it.
    for pack in sorted(plan["packs"].values(), key=lambda pack: any(plan["cards"][c]["run"] for c in pack["cards"])):
        data = {pack["data"], *pack["evaluations"].values()} - prepared
        for card in {*pack["cards"]}.union(*(plan["data"][name]["cards"] for name in data)) - cards:
            jobs.fetch(card)
            cards.add(card)
        for name in data:
            jobs.prepare(plan, name)
            prepared.add(name)
        jobs.train(plan, pack["name"], threads=1)
        for evaluation in pack["evaluations"] if pack["keep_weights"] else ():
            jobs.evaluate(plan, pack["name"], evaluation, threads=1)
    jobs.tables(plan, study)


@pytest.fixture(scope="module", params=[study for study in PAGE if study != "lr_ratio"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A study that was made at smoke scale; lr_ratio is made by Snakemake itself, in test_workflow.py."""
    with contextlib.chdir(tmp_path_factory.mktemp(request.param)):
        make(request.param)
        yield request.param


@pytest.mark.timeout(1200)  # a whole study, on a machine that others may use
def test_what_the_commands_ask_for_is_made_at_smoke_scale(made: str) -> None:
    with (STUDIES / made / "runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert {(run["status"], run["cause"]) for run in runs} == {("ok", "")}
    named = {word for row in PAGE[made].rows for word in row.ours if row.table.startswith("Commands")}
    assert named & load_study(made).arms.keys() <= {run["arm"] for run in runs}
    outputs = make_plan("smoke", [made])["studies"][made]["outputs"]
    assert all((STUDIES / made / output).stat().st_size for output in outputs)
    asked = {word for words in PAGE[made].commands if words[0] == "snakemake" for word in words[3:] if "/" in word}
    assert asked <= {f"{STUDIES / made}/{output}" for output in outputs}
