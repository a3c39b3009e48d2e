"""What the documentation says is so: links, cards, parts, flags, and the README's results."""

from __future__ import annotations

import importlib.util
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from lowrank import registry
from lowrank.cards import card_names, data_card, model_card, run_spec
from lowrank.cli import app
from lowrank.methods.part import HOOKS
from lowrank.sources import TrainedSource
from lowrank.study import evaluations, load_study, studies
from tests.doc_pages import OTHERS, PAGES, ROOT, anchors, blocks, in_passing, inline, links, script, shown

EXAMPLE_PART = "vera"


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=shown)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{shown(page)} links to {link}"
        assert not anchor or anchor in anchors(target), f"{shown(page)} links to {link}: no such heading"


def rows(page: str, section: str) -> list[list[str]]:
    """The cells of the table under a heading, its head and rule left out."""
    text = (ROOT / "docs" / page).read_text().split(f"# {section}\n", 1)[1]
    table = re.search(r"^(\|.*\n)+", text, re.MULTILINE)
    assert table
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()]


def test_every_card_is_named_with_its_licence() -> None:
    told = {row[0].strip("`"): row for row in rows("data.md", "Data and models")[2:]}
    cards = [data_card(name) for name in card_names("data")] + [model_card(name) for name in card_names("models")]
    assert sorted(told) == sorted(card.name for card in cards), "one row for each card"
    for card in cards:
        _, _, source, licence, _ = told[card.name]
        assert licence == card.licence
        said = getattr(card.source, "repository", None) or getattr(card.source, "package", None)
        assert said is None or said in source or source == "the same wheel"


def with_origins(name: str) -> list[str]:
    """A card and, where the pipeline trains it, the cards that it is trained from."""
    if name in card_names("data") or not isinstance(model_card(name).source, TrainedSource):
        return [name]
    run = run_spec(model_card(name))
    return [name, *with_origins(run.model.card), run.data.card]


def test_the_scales_of_cards_are_those_of_the_studies() -> None:
    used: dict[str, set[str]] = {}
    for path in (ROOT / "workflow" / "studies").glob("*.yaml"):
        study = load_study(path.stem)
        for scale, record in yaml.safe_load(path.read_text())["scales"].items():
            named = [record["base"][section]["card"] for section in ("model", "data")]
            named += [asked.data.card for asked in evaluations(study, scale).values() if asked.data is not None]
            sweeps = [record["sweeps"], record.get("extended", {}).get("sweeps", {})]
            for grid in (grid for part in sweeps for grids in part.values() for grid in grids):
                values = [grid.get("model.card", []), grid.get("data.card", [])]
                named += [name for value in values for name in (value if isinstance(value, list) else [value])]
            for card in (card for name in named for card in with_origins(name)):
                used.setdefault(card, set()).add(scale)
    for row in rows("data.md", "Data and models")[2:]:
        assert row[4] == (", ".join(sorted(used.get(row[0].strip("`"), ()))) or "no study yet"), row[0]


def test_the_contracts_table_is_the_contract() -> None:
    head, _, *table = rows("architecture.md", "The contract of a part")
    assert sorted(row[0] for row in table) == sorted(registry.parts()), "one row for each part"
    hooks = ["state_dict" if column == "state" else column for column in head[1:]]
    page = " ".join(inline(ROOT / "docs" / "architecture.md"))
    for hook in set(HOOKS) - {"load_state_dict", "stack"} - set(hooks):
        assert hook in page, f"{hook} has no column and is not named on the page"
    for name, *cells in table:
        part = registry.part(name)
        drawn = {hook for hook, cell in zip(hooks, cells, strict=True) if cell.startswith("x")}
        assert drawn == {hook for hook in hooks if hasattr(part, hook)}, name


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_methods_that_are_named_exist(page: Path) -> None:
    lists = [text[1:-1].split(", ") for text in inline(page) if re.fullmatch(r"\[[a-z0-9_]+(, [a-z0-9_]+)*\]", text)]
    entries = re.findall(r"\{part: (\w+)", page.read_text())
    for name in {*itertools.chain(*lists), *entries} - {EXAMPLE_PART}:
        assert name in registry.parts(), f"{shown(page)} names {name}"


def test_the_documents_flags_are_ours_with_their_defaults() -> None:
    sweep: Any = typer.main.get_command(app).commands["sweep"]  # type: ignore[attr-defined]
    ours = {flag: parameter for parameter in sweep.params for flag in parameter.opts}
    table = rows("documents.md", "Flags")[2:]
    for row in table:
        flags = re.findall(r"--[\w-]+", " ".join(row[:1] + row[2:]))
        assert flags
        assert set(flags) <= set(ours)
        if re.fullmatch(r"[\d.]+", row[1]):
            assert ours[flags[0]].default == float(row[1]), row[0]
    assert {flag for row in table for flag in re.findall(r"--[\w-]+", row[0] + row[2])} >= set(ours) - {
        "--batch-size",
        "--help",
    }


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=shown)
def test_commands_named_in_passing_exist(page: Path) -> None:
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    rules = "".join(path.read_text() for path in [ROOT / "workflow" / "Snakefile", *(ROOT / "workflow").rglob("*.smk")])
    for text in in_passing(page):
        tool, *words = text.split() or [""]
        if tool == "lowrank" and words and re.fullmatch(r"[a-z]+", words[0]):
            assert words[0] in known, text
        if tool == "make":
            assert {word for word in words if "=" not in word} <= targets, text
        if text.startswith("python -m "):
            assert importlib.util.find_spec(words[1]), text
        if tool == "snakemake" and "--" in words:
            for target in words[words.index("--") + 1 :]:
                assert target in studies() or f"rule {target}:" in rules or target.startswith("results/"), text


def test_the_configuration_is_documented_from_its_records() -> None:
    written = script("configuration")
    assert written.PAGE.read_text() == written.page(), "run `python docs/configuration.py`"
    assert all(f"| `{key}` |" in written.page() for key in ("scale", "studies", "gpu.model", "warn_seconds"))


def test_the_workflow_catalog_finds_what_it_asks_for() -> None:
    """Standardised usage: these three files, and claims about deployment that the workflow bears out."""
    asked = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert all((ROOT / name).is_file() for name in ("README.md", "workflow/Snakefile", "config/README.md"))
    rules = "".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))
    stack = asked["software-stack-deployment"]
    assert stack["conda"] == ("conda:" in rules)
    assert stack["apptainer"] == ("container:" in rules)
    assert stack["report"] == ("report(" in rules)


def test_the_readmes_first_screen_has_both_commands_and_the_picture() -> None:
    top = "\n".join((ROOT / "README.md").read_text().splitlines()[:24])
    assert 'src="docs/frozen/verdicts.png"' in top
    assert re.search(r"^make +#", top, re.MULTILINE)
    assert re.search(r"^make test +#", top, re.MULTILINE)
    assert blocks(ROOT / "README.md", "bash")[0] in top
