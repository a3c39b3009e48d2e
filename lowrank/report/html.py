"""Tables and verdicts as HTML that stands alone: escaped, scrollable in its own box, readable aloud."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from lowrank.report.kinds import TableView
from lowrank.report.text import number, rate

HEADINGS = {
    "arm": "method",
    "lr": "learning rate",
    "alpha_over_rank": "α/r",
    "budget": "training",
    "best_lr": "best LR",
    "tied_lr": "tied LRs",
    "runner_up_lr": "runner-up LR",
    "best_lr_by_seed": "best LR by seed",
    "best_val_loss": "best validation loss",
    "test_accuracy": "test accuracy",
    "gap": "runner-up is worse by",
    "ratio": "ratio to full",
    "ratios": "ratios within ties",
    "weight_norm_mean": "mean weight norm",
    "delta_norm_mean": "mean update norm",
    "stated_ratio": "ratio in fig. 3",
    "runs_ok": "runs finished",
}

WIDE = ("cause", "note")
"""Columns of sentences; they wrap."""


def escape(value: object) -> str:
    """Text for HTML."""
    return html.escape(str(value))


def table_fragment(frame: pd.DataFrame, view: TableView) -> str:
    """A table as HTML: the columns of `view.show`, an interval beside its mean, its note below.

    Args:
        frame: the table.
        view: title, note and columns.
    """
    names = [str(name) for name in frame.columns]
    columns = list(view.show) or [name for name in names if not _bound_of(name, names)]
    return rows_fragment(frame.to_dict("records"), columns, caption=view.title, note=view.note)


def rows_fragment(rows: Iterable[Mapping[Any, Any]], columns: list[str], *, caption: str, note: str = "") -> str:
    """Rows of plain values as an HTML table."""
    head = "".join(f'<th scope="col">{escape(heading(column))}</th>' for column in columns)
    body = "".join(f"<tr>{''.join(_cell(row, column) for column in columns)}</tr>\n" for row in rows)
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>{below}\n"
    )


def heading(column: str) -> str:
    """A column's name for a reader."""
    return HEADINGS.get(column, column.replace("_", " "))


def cell_text(column: str, value: Any) -> str:
    """A value as its column shows it; a dash where there is none."""
    if isinstance(value, str):
        return value or "–"
    return rate(value) if column == "lr" or column.endswith("_lr") else number(value)


def badge(verdict: str) -> str:
    """A verdict as a coloured word."""
    return f'<span class="verdict {verdict.replace(" ", "-")}">{escape(verdict)}</span>'


def _bound_of(name: str, names: list[str]) -> bool:
    return any(name.endswith(end) and name.removesuffix(end) in names for end in ("_low", "_high"))


def _cell(row: Mapping[Any, Any], column: str) -> str:
    value = row[column]
    if column in ("verdict", "agrees_with_itself") and value:
        return f"<td>{badge(str(value))}</td>"
    text = escape(cell_text(column, value))
    low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
    if low is not None and high is not None and not (pd.isna(low) and pd.isna(high)):
        text += f" <small>[{escape(cell_text(column, low))}, {escape(cell_text(column, high))}]</small>"
    kind = "wide" if column in WIDE else "number" if not isinstance(value, str) else "text"
    return f'<td class="{kind}">{text}</td>'
