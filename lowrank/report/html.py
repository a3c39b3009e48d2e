"""Tables and verdicts as HTML that stands alone: escaped, scrollable in its own box, readable aloud."""

from __future__ import annotations

import base64
import functools
import html
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lowrank.report.columns import PLAIN, Columns
from lowrank.report.kinds import TableView
from lowrank.report.text import number, rate, size

Last = tuple[str, Sequence[str]]
"""A heading, and a piece of HTML for each row."""

HERE = Path(__file__).parent

CAUSE_CHARACTERS = 150
"""So much of a cause stands beside an answer; all of it beside the claim."""

WIDE = ("cause", "note")
"""Columns of sentences; they wrap."""


def escape(value: object) -> str:
    """Text for HTML."""
    return html.escape(str(value))


def table_fragment(
    frame: pd.DataFrame, view: TableView, columns: Columns, *, name: str = "", last: Last | None = None
) -> str:
    """A table as HTML: the columns of `view.show`, an interval beside its mean, its note below.

    Args:
        frame: the table.
        view: title, note and columns.
        columns: names and meanings.
        name: where it is given, the rows have the ids `<name>-0`, `<name>-1`, ... to be linked to.
        last: a last column of HTML, such as links to the runs behind each row.
    """
    names = [str(column) for column in frame.columns]
    shown = list(view.show) or [column for column in names if not _bound_of(column, names)]
    rows = frame.to_dict("records")
    return rows_fragment(rows, shown, columns=columns, caption=view.title, note=view.note, name=name, last=last)


def rows_fragment(
    rows: Sequence[Mapping[Any, Any]],
    shown: list[str],
    *,
    caption: str,
    columns: Columns = PLAIN,
    note: str = "",
    name: str = "",
    last: Last | None = None,
) -> str:
    """Rows of plain values as an HTML table, which the page's script lets a reader sort."""
    head = "".join(_head(column, columns) for column in shown)
    head += f'<th scope="col" data-fixed>{escape(last[0])}</th>' if last is not None else ""
    body = ""
    for index, row in enumerate(rows):
        cells = "".join(_cell(row, column, columns) for column in shown)
        cells += f'<td class="links">{last[1][index]}</td>' if last is not None else ""
        body += f'<tr id="{escape(name)}-{index}">{cells}</tr>\n' if name else f"<tr>{cells}</tr>\n"
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table class="sortable">'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
        f"{below}\n"
    )


def _head(column: str, columns: Columns) -> str:
    definition = columns.definition(column)
    told = f' title="{escape(definition)}"' if definition else ""
    return f'<th scope="col"{told}>{escape(columns.heading(column))}</th>'


def cell_text(column: str, value: Any) -> str:
    """A value as its column shows it; a dash where there is none."""
    if isinstance(value, str):
        return value or "–"
    if column.endswith("_bytes"):
        return size(value)
    return rate(value) if column == "lr" or column.endswith("_lr") else number(value)


def fold(title: str, rows: int, body: str, name: str) -> str:
    """A table that is folded under its title."""
    head = f"<summary>{escape(title)} <small>{rows} rows</small></summary>"
    return f'<details id="{escape(name)}">{head}{body}</details>\n'


def data_link(name: str, data: bytes) -> str:
    """A CSV file inside the page: the link works wherever the page is copied to."""
    code = base64.b64encode(data).decode()
    return f'<a class="data" download="{escape(name)}" href="data:text/csv;base64,{code}">CSV</a>'


def badge(verdict: str) -> str:
    """A verdict as a coloured word."""
    return f'<span class="verdict {verdict.replace(" ", "-")}">{escape(verdict)}</span>'


def answers(key_claims: Sequence[str], entries: Sequence[Mapping[str, Any]], page: str = "") -> str:
    """What became of the claims that answer a study's question, as a list; nothing where none is named.

    Args:
        key_claims: names of claims, in order.
        entries: of the study's `claims.json`.
        page: of the study, where the list stands on another one.
    """
    first = {entry["claim"]: entry for entry in reversed(entries)}
    items = "".join(
        f"<li>{badge(entry['verdict'])} <q>{escape(entry['published'])}</q> "
        f'<a href="{page}#{escape(entry["id"])}">why</a>'
        f"<small>{escape(textwrap.shorten(entry['cause'], CAUSE_CHARACTERS, placeholder=' …'))}</small></li>"
        for entry in (first[name] for name in key_claims if name in first)
    )
    return f'<ul class="answers" aria-label="in short">{items}</ul>' if items else ""


def _bound_of(name: str, names: list[str]) -> bool:
    return any(name.endswith(end) and name.removesuffix(end) in names for end in ("_low", "_high"))


def _cell(row: Mapping[Any, Any], column: str, columns: Columns) -> str:
    value = columns.value(column, row[column])
    if (column.startswith("verdict") or column == "agrees_with_itself") and value:
        return f"<td>{badge(str(value))}</td>"
    text = escape(cell_text(column, value))
    low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
    if low is not None and high is not None and not (pd.isna(low) and pd.isna(high)):
        text += f" <small>[{escape(cell_text(column, low))}, {escape(cell_text(column, high))}]</small>"
    if isinstance(value, str):
        return f'<td class="{"wide" if column in WIDE else "text"}">{text}</td>'
    exact = "" if value is None or pd.isna(value) else f' data-value="{value}"'
    return f'<td class="{"wide" if column in WIDE else "number"}"{exact}>{text}</td>'


@functools.cache
def template(name: str) -> Any:
    """A template of this folder, with the style and the script that every page carries."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {key: (HERE / f"page.{key}").read_text(encoding="utf-8") for key in ("css", "js")}
    return environment.get_template(f"{name}.html")
