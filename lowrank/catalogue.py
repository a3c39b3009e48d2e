"""Every part as its code describes it: one source for docs/methods.md, the README's table and help texts.

`python -m lowrank.catalogue` writes docs/methods.md; a test compares the file with what would be written.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

from lowrank import registry
from lowrank.compositions import CHAINS, Pair, least_chain, pairs
from lowrank.fields import REQUIRED, Field, fields, markdown
from lowrank.files import REPOSITORY, write_text
from lowrank.methods.part import HOOKS, Part

PAGE = REPOSITORY / "docs" / "methods.md"


@dataclass(frozen=True)
class Entry:
    """One part: the paragraphs of its docstring, by what they say."""

    name: str
    summary: str
    body: tuple[str, ...]
    source: str
    departs: str
    knobs: dict[str, str]
    hooks: tuple[str, ...]
    options: tuple[Field, ...]


def entries() -> list[Entry]:
    """Every part, in alphabetical order."""
    return [_entry(part) for part in registry.parts().values()]


def table() -> str:
    """The parts as a Markdown table: name, what it does, where it is from."""
    rows = [f"| [`{e.name}`](#{e.name}) | {e.summary} | {e.source or 'a control'} |" for e in entries()]
    return "\n".join(["| part | what it does | source |", "|---|---|---|", *rows])


def text() -> str:
    """The parts for a terminal: one line each, options below."""
    lines = []
    for entry in entries():
        lines.append(f"{entry.name}: {entry.summary}")
        lines += [f"    {option.name} = {option.default}" for option in entry.options]
    return "\n".join(lines)


def page() -> str:
    """docs/methods.md."""
    blocks = [
        "# Methods",
        "Written by `python -m lowrank.catalogue` from the parts' own docstrings and from trying every composition; "
        "edit those, not this page. How to use them: [use.md](use.md). How to add one: [add-a-method.md]"
        "(add-a-method.md).",
        "A method is a chain of parts, in order, as in `nf4+lora`.",
        table(),
        "## Chains",
        "\n".join(["| chain | what it is |", "|---|---|", *(f"| `{c}` | {what} |" for c, what in CHAINS.items())]),
        "## What goes together",
        "Each ordered pair was attached to a small BERT classifier, trained for a few steps and merged. The part of "
        "the row stands in front of the part of the column. `+` trains; `#` trains, and the other order trains too "
        "but learns another function; a number is the sentence below with which the pair is refused. Where both "
        "orders are `+`, they learn the same function from the same start.",
        *_matrix(pairs()),
        "### Behind lora",
        "The same for chains of three that `lora` starts, since several parts need it in front of them.",
        *_matrix(pairs(("lora",))),
        "## Parts",
    ]
    for entry in entries():
        blocks += _section(entry)
    return "\n\n".join(blocks) + "\n"


def _entry(part: type[Part]) -> Entry:
    paragraphs = (inspect.getdoc(part) or "").split("\n\n")
    told = {"Source:": "", "Departs from:": ""}
    body = []
    for paragraph in paragraphs[1:]:
        # One paragraph may hold both, the second starting on a line of its own.
        for piece in re.split(r"\n(?=Departs from:)", paragraph):
            label = next((label for label in told if piece.startswith(label)), None)
            if label is None:
                body.append(piece)
            else:
                told[label] = " ".join(piece.removeprefix(label).split()).rstrip(".")
    return Entry(
        name=part.name,
        summary=" ".join(paragraphs[0].split()),
        body=tuple(body),
        source=told["Source:"],
        departs=told["Departs from:"],
        knobs=dict(part.knobs),
        hooks=tuple(hook for hook in HOOKS if hasattr(part, hook)),
        options=tuple(_options(part)),
    )


def _options(part: type[Part]) -> list[Field]:
    return sorted(fields(part.Options, "lowrank.methods"), key=lambda option: option.default != REQUIRED)


def _section(entry: Entry) -> list[str]:
    blocks = [f"### {entry.name}", entry.summary, *map(_paragraph, entry.body)]
    if entry.source:
        blocks.append(f"**Source.** {entry.source}.")
    if entry.departs:
        blocks.append(f"**Departs from.** {entry.departs}.")
    if entry.options:
        blocks.append(markdown(entry.options, "option"))
    else:
        blocks.append("No options.")
    knobs = ", ".join(f"`{letter}` {option}" for letter, option in entry.knobs.items()) or "nothing"
    least = "+".join(least_chain(entry.name))
    hooks = ", ".join(f"`{hook}`" for hook in entry.hooks)
    blocks.append(f"Shortest chain: `{least}`. In a run's name: {knobs}. Hooks: {hooks}.")
    return blocks


def _paragraph(paragraph: str) -> str:
    """An equation becomes a block of its own; text, lists and tables stay."""
    lines = paragraph.splitlines()
    if all(re.search(r"=|<-|->", line) for line in lines) and not paragraph.rstrip().endswith((".", ":", ";")):
        return f"```text\n{paragraph}\n```"
    return paragraph


def _matrix(found: dict[tuple[str, str], Pair]) -> list[str]:
    """A table of first part x second part, and the numbered sentences it refers to."""
    parts = sorted({part for pair in found for part in pair})
    notes: dict[str, int] = {}
    rows = []
    for first in parts:
        cells = []
        for second in parts:
            pair = found.get((first, second))
            if pair is None:
                cells.append("")
            elif pair.refusal is None:
                cells.append("#" if pair.order_matters else "+")
            else:
                # The chain's own name would make a sentence of its own for every cell.
                sentence = re.sub(r"chain \w+[.+][\w.+]+", "the chain", pair.refusal)
                cells.append(str(notes.setdefault(sentence, len(notes) + 1)))
        rows.append(f"| `{first}` | {' | '.join(cells)} |")
    header = f"| | {' | '.join(f'`{part}`' for part in parts)} |"
    return [
        "\n".join([header, "|---|" + ":-:|" * len(parts), *rows]),
        "\n".join(f"{number}. {sentence}" for sentence, number in notes.items()),
    ]


if __name__ == "__main__":
    write_text(PAGE, page())
