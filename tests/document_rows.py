"""What docs/documents.md says is the same here, row by row, and all that a study holds under a name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

from lowrank.cards import card_names, data_card, model_card
from lowrank.files import REPOSITORY
from lowrank.planning import make_plan
from lowrank.spec import RunSpec
from lowrank.strict import parse
from lowrank.study import STUDIES
from lowrank.yaml_files import read_yaml
from tests.doc_pages import COMMENT, FENCE, INLINE, commands_in

PAGE = REPOSITORY / "docs" / "documents.md"


class Section(NamedTuple):
    """What the page says of one study: its tables' rows, and the commands of its blocks."""

    study: str
    rows: list[Row]
    commands: list[list[str]]


class Row(NamedTuple):
    """One row: the cell of the document, and what stands between backticks in ours."""

    study: str
    table: str
    document: str
    ours: list[str]


def sections() -> dict[str, Section]:
    """The page's sections that are about a study; a study may have several, which are joined."""
    found: dict[str, Section] = {}
    for text in re.split(r"^(?=## )", COMMENT.sub("", PAGE.read_text()), flags=re.MULTILINE):
        named = re.match(r"## .*: study `(\w+)`", text)
        if named:
            section = found.setdefault(named[1], Section(named[1], [], []))
            section.rows.extend(_rows(named[1], FENCE.sub("", text)))
            section.commands.extend(commands_in(text))
    return found


def _rows(study: str, text: str) -> Iterator[Row]:
    for part in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*$", part, re.M)]
        if lines and "here" in lines[0]:
            here = lines[0].index("here")
            for cells in lines[2:]:
                yield Row(study, part.splitlines()[0], cells[0], INLINE.findall(cells[here]))


def settings_in(code: str) -> list[tuple[str, Any]] | None:
    """The settings that a piece such as `train: {lr: 2e-4}` or `pad: max_length` names; None where it is none."""
    if ":" not in code:
        return None
    try:
        return list(_leaves(yaml.safe_load(code if code.startswith("{") else f"{{{code}}}")))
    except yaml.YAMLError:
        return None


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every scalar with the name that it stands under; numbers are numbers, however YAML reads them."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, str(name).rsplit(".", 1)[-1])
    elif isinstance(value, list | tuple):
        for inner in value:
            # A chain may name its parts alone.
            yield from _leaves(inner, "part" if key == "chain" and isinstance(inner, str) else key)
    else:
        try:
            yield key, value if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            yield key, value


class Held:
    """What a study holds at a scale: the settings of its runs, cards and evaluations, and every name and value.

    Args:
        study: its name.
        scale: smoke, laptop or paper.
    """

    def __init__(self, study: str, scale: str) -> None:
        plan = make_plan(scale, [study])
        specs = [parse(RunSpec, entry["spec"], run).model_dump(mode="json") for run, entry in plan["runs"].items()]
        chains = [{"part": part["part"]} for entry in plan["runs"].values() for part in entry["spec"]["chain"]]
        raw = read_yaml(STUDIES / f"{study}.yaml")
        views = [{"name": list(raw[key])} for key in ("arms", "tables", "figures", "evaluations")]
        asked = [entry["spec"] for entry in plan["evaluations"].values()]
        data = [{"card": name, **data_card(name).model_dump(mode="json")} for name in card_names("data")]
        models = [{"card": name, **model_card(name).model_dump(mode="json")} for name in card_names("models")]
        cards = [card for card in data + models if card["card"] in plan["cards"]]
        self.settings = set(_leaves([raw, specs, chains, asked, cards]))
        self.words = {word for pair in self.settings | set(_leaves(views)) for word in pair} | set(RunSpec.model_fields)
