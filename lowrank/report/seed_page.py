"""The piece of a study's page that says how much rests on one seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lowrank.report.columns import Columns
from lowrank.report.html import data_link, escape, fold, rows_fragment
from lowrank.report.seeds import sensitivity

TOLD = {
    "turns": "turn to the opposite",
    "opens": "are no longer decided",
    "settles": "are decided though all seeds together leave them open",
    "stays": "stay as they are",
}
NOTE = (
    "Left out one at a time. With fewer seeds an interval grows (of two, to 12.7 standard errors either way), so a "
    "verdict that is lost says little, and one that turns, or that only fewer seeds decide, says much."
)


def seeds_section(record: Mapping[str, Any], columns: Columns) -> str:
    """The section, from what `claims.json` holds; nothing where no sentence rests on several seeds."""
    entries = [entry for entry in record["entries"] if entry["without_seed"]]
    if not entries:
        return ""
    counts = Counter(sensitivity(entry["verdict"], entry["without_seed"]) for entry in entries)
    said = ", ".join(f"{counts[what]} {words}" for what, words in TOLD.items() if counts[what])
    rows = [
        {"id": entry["id"], "verdict": entry["verdict"]}
        | {f"verdict_without_seed_{seed}": verdict for seed, verdict in entry["without_seed"].items()}
        for entry in entries
    ]
    links = [f'<a href="#{escape(entry["id"])}">sentence</a>' for entry in entries]
    shown = list(dict.fromkeys(column for row in rows for column in row))
    verdicts = rows_fragment(rows, shown, caption="Verdicts with a seed left out", last=("", links))
    spread = [{**row, "metric": columns.heading(row["metric"])} for row in record["spread"]]
    told = ["metric", "configuration", "seeds", "mean", "sd", "lowest", "highest"]
    values = rows_fragment(spread, told, caption="Spread over seeds", columns=columns)
    values += f"<p>{data_link('spread.csv', csv_of(record['spread']))}</p>"
    return (
        '<section id="seeds"><h3>How much rests on one seed</h3>'
        f"<p>Of {len(entries)} sentences that are judged by runs, with one seed left out {said}.</p>"
        f'<p class="note">{NOTE}</p>'
        f"{fold('Verdicts with a seed left out', len(rows), verdicts, 'seeds-left-out')}"
        f"{fold('Spread over seeds of what the sentences rest on', len(spread), values, 'seeds-spread')}</section>"
    )


def csv_of(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as CSV, with a head line."""
    import pandas as pd

    return pd.DataFrame(rows).to_csv(index=False, lineterminator="\n").encode()
