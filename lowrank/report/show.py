"""What a notebook shows of a study: each call returns a piece of its page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lowrank.files import read_json
from lowrank.report import analytic, tables  # noqa: F401 - registers arithmetic, and which runs stand behind a row
from lowrank.report.html import Last, answers, badge, data_link, escape, fold, rows_fragment, table_fragment
from lowrank.report.inline import inline_svg
from lowrank.report.judging import HOW
from lowrank.report.kinds import Arithmetic
from lowrank.report.ledger import REPORTED
from lowrank.report.opened import RUNS, open_study
from lowrank.report.run_page import run_link
from lowrank.report.seed_page import seeds_section
from lowrank.report.text import snakemake
from lowrank.report.verdicts import VERDICTS, published
from lowrank.report.views import parse_views
from lowrank.yaml_files import read_yaml

FEW = 6
"""So many links in a row are of use."""


class Html:
    """A piece of a page; Jupyter shows it as HTML."""

    def __init__(self, text: str) -> None:
        self.text = text

    def _repr_html_(self) -> str:
        return self.text


class Report:
    """A study's results, opened for showing.

    Args:
        study: its name.
        scale: smoke, laptop or paper.
        folder: where `lowrank tables` wrote.
        study_file: the study's YAML.
        reported: where the published numbers lie.
        runs: where run folders lie.
    """

    def __init__(
        self,
        study: str,
        scale: str,
        folder: str,
        study_file: str,
        reported: str = str(REPORTED),
        runs: str = str(RUNS),
    ) -> None:
        self.raw: dict[str, Any] = read_yaml(Path(study_file))
        self.folder = Path(folder)
        views = parse_views(self.raw, study)
        csv = self.folder / "runs.csv"
        # The page shows what was written, and draws nothing. Of a printed number a CSV loses the last zeros.
        written = [name for name, view in views.tables.items() if not isinstance(view, Arithmetic)]
        self.context = open_study(
            study, views, csv, self.folder, scale, reported=Path(reported), runs=Path(runs), written=written
        )
        self.record: dict[str, Any] = read_json(self.folder / "claims.json")

    def summary(self) -> Html:
        """The question, the protocol, and what these pages were made from."""
        runs, rows = self.context.runs, []
        for label, column in (("data", "data_title"), ("model", "model_title"), ("device", "device")):
            if column in runs and runs[column].notna().any():
                rows.append((label, ", ".join(sorted(map(str, runs[column].dropna().unique())))))
        counts = ", ".join(f"{value} {status}" for status, value in runs["status"].value_counts().items())
        rows.append(("runs", f"{len(runs)} planned: {counts}"))
        rows.append(("seeds", self._seeds()))
        facts = "".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in rows)
        protocol = "".join(f"<li>{escape(sentence)}</li>" for sentence in self.raw.get("protocol", ()))
        cause = self.record["runs"]["cause"]
        warning = f'<p class="warning">Not every run has a result: {escape(cause)}.</p>' if cause else ""
        short = answers(self.raw.get("key_claims") or (), self.record["entries"])
        question = f'<p class="question">{escape(self.raw.get("question", ""))}</p>'
        return Html(
            f"{question}{self._scale_note()}{warning}{short}{self._counts()}"
            f'<section class="box"><h2>Protocol</h2><ul>{protocol}</ul><dl class="facts">{facts}</dl></section>'
        )

    def figures(self, *names: str) -> Html:
        """Figures, each with its caption and its data."""
        return Html(f'<div class="figures">{"".join(map(self._figure, names))}</div>')

    def tables(self, *names: str) -> Html:
        """Tables, folded."""
        return Html("".join(map(self._table, names)))

    def claims(self) -> Html:
        """Every sentence of the document with its verdict, the numbers it rests on, and how much is one seed's."""
        entries = [entry for entry in self.record["entries"] if entry["claim"]]
        seeds = seeds_section(self.record, self.context.views.columns())
        how = f"<details><summary>How a verdict comes about</summary><p>{escape(HOW)}</p></details>"
        return Html(f'{how}<ol class="claims">{"".join(map(self._claim, entries))}</ol>{seeds}')

    def numbers(self) -> Html:
        """Every published number beside ours, by figure."""
        parts = []
        for artefact, title in self.record["artefacts"].items():
            entries = [entry for entry in self.record["entries"] if entry["artefact"] == artefact and entry["cell"]]
            if entries:
                parts.append(
                    fold(f"{artefact}: {title}", len(entries), self._number_table(title, entries), f"n-{artefact}")
                )
        return Html("".join(parts))

    def again(self) -> Html:
        """What this scale leaves out of the document's grid, and how each piece is made again."""
        dropped = self.raw.get("scales", {}).get(self.context.scale, {}).get("dropped") or "Nothing is left out."
        study = self.context.study
        scale = self.context.scale
        lines = [
            (snakemake(scale, study), "this page and all that it needs"),
            (snakemake(scale, study, f"page_{study}"), "this page alone"),
            (snakemake(scale, study, f"tables_{study}"), "tables, figures, verdicts and the page"),
            (f"lowrank rerun {self.context.runs['run'].iloc[0]}", "forgets one run; the first command trains it again"),
            (snakemake("paper", study), "the document's own scale, on a cluster"),
        ]
        items = "".join(f"<dt>{escape(why)}</dt><dd><code>{escape(line)}</code></dd>" for line, why in lines)
        return Html(f'<p>{escape(dropped)}</p><dl class="commands">{items}</dl>')

    def _seeds(self) -> str:
        """How many seeds the configurations of each arm have."""
        runs = self.context.runs
        by = [column for column in ("arm", "rank", "alpha", "budget") if column in runs]
        counts = runs.groupby(by, dropna=False)["seed"].nunique().groupby("arm").agg(["min", "max"])
        titles = self.context.views.titles
        spans: dict[str, list[str]] = {}
        for arm, low, high in counts.itertuples():
            spans.setdefault(f"{low}" if low == high else f"{low} to {high}", []).append(titles.get(arm, arm))
        if len(spans) == 1:
            return f"{next(iter(spans))} for each configuration"
        return "; ".join(f"{span}: {', '.join(dict.fromkeys(arms))}" for span, arms in sorted(spans.items()))

    def _scale_note(self) -> str:
        notes = {
            "smoke": "Smoke scale: tiny random models that show that the pipeline runs. No number here means anything.",
            "laptop": "Laptop scale: small real models and data. Directions are judged; the document's numbers are not "
            "comparable.",
            "paper": "Paper scale: the document's own models, data and grid.",
        }
        return f'<p class="scale">{escape(notes[self.context.scale])}</p>'

    def _counts(self) -> str:
        counts = self.record["counts"]
        items = "".join(f"<li>{badge(verdict)} {counts[verdict]}</li>" for verdict in VERDICTS if counts[verdict])
        split = self.record["reproduced"]
        if counts["reproduced"]:
            parts = f"{split['measured']} measured, {split['computed']} computed"
            items += f"<li><small>Of those reproduced: {parts}.</small></li>"
        return f'<ul class="counts" aria-label="published numbers and sentences by verdict">{items}</ul>'

    def _figure(self, name: str) -> str:
        view = self.context.views.figures[name]
        drawn = (self.folder / f"{name}.svg").read_text(encoding="utf-8")
        drawing = inline_svg(drawn, name, f"{view.title}. {view.caption}")
        link = self._csv(view.table)
        return (
            f'<figure id="{name}">{drawing}<figcaption><b>{escape(view.title)}.</b> {escape(view.caption)} '
            f"{link} {self._command(f'{name}.svg')}</figcaption></figure>"
        )

    def _table(self, name: str) -> str:
        frame, view, views = self.context.table(name), self.context.views.tables[name], self.context.views
        fragment = table_fragment(frame, view, views.columns(), name=f"t-{name}", last=self._run_links(name))
        body = f"{fragment}<p>{self._csv(name)} {self._command(f'{name}.csv')}</p>"
        return fold(view.title, len(frame), body, f"t-{name}")

    def _command(self, file: str) -> str:
        """The command that makes one file of the study again, folded."""
        study = self.context.study
        line = snakemake(self.context.scale, f"results/studies/{study}/{file}", f"tables_{study}")
        return f'<details class="again"><summary>make again</summary><code>{escape(line)}</code></details>'

    def _csv(self, name: str) -> str:
        return data_link(f"{name}.csv", (self.folder / f"{name}.csv").read_bytes())

    def _run_links(self, name: str) -> Last | None:
        """For each row of a table, links to the runs behind it, named by seed."""
        study, frame = self.context.study, self.context.table(name)
        if "run" in frame:
            return "run", [run_link(study, str(run), "run") for run in frame["run"]]
        cells = self.context.cells(name)
        if cells is None:
            return None
        return "runs by seed", [" ".join(run_link(study, *pair) for pair in _runs_by_seed(runs)) for _, runs in cells]

    def _number_table(self, title: str, entries: Sequence[dict[str, Any]]) -> str:
        rows = [
            {name: entry[name] for name in ("id", "line", "ours", "ours_low", "ours_high", "verdict", "cause", "note")}
            | {"published": published(entry["published"], entry["reading"])}
            for entry in entries
        ]
        shown = ["id", "line", "published", "ours", "verdict", "cause"]
        shown += ["note"] if any(row["note"] for row in rows) else []
        last = ("in our", [self._behind(entry) for entry in entries])
        return rows_fragment(rows, shown, caption=title, columns=self.context.views.columns(), last=last)

    def _behind(self, entry: dict[str, Any], before: str = "") -> str:
        """Links to the table that an entry rests on, to its rows there, and to their runs."""
        if entry["table"] is None:
            return ""
        anchor = f"#t-{escape(entry['table'])}"
        rows = [f'<a href="{anchor}-{row}">{row + 1}</a>' for row in entry["rows"]]
        runs = [run_link(self.context.study, run, str(index)) for index, run in enumerate(entry["runs"], start=1)]
        found = [f'<a href="{anchor}">table</a>', _few("row", rows), _few("run", runs)]
        return before + " · ".join(filter(None, found))

    def _claim(self, entry: dict[str, Any]) -> str:
        evidence = "".join(f"<li>{escape(line)}</li>" for line in entry["evidence"])
        shown = f"<details><summary>Evidence</summary><ul>{evidence}</ul></details>" if evidence else ""
        own = entry["document"]
        itself = (
            f'<p class="itself">Against the document’s own figure: {badge(own["verdict"])} {escape(own["cause"])}</p>'
            if own
            else ""
        )
        return (
            f'<li id="{escape(entry["id"])}"><p class="claim"><span class="id">{escape(entry["id"])}</span> '
            f"<q>{escape(entry['published'])}</q> <small>line {entry['line']}{self._behind(entry, ' · ')}</small></p>"
            f'<p class="finding">{badge(entry["verdict"])} {escape(entry["cause"])}</p>{itself}{shown}</li>'
        )


def _few(word: str, links: list[str]) -> str:
    """`rows 1 2 3 and 4 more`; nothing where there is none."""
    if not links:
        return ""
    more = f" and {len(links) - FEW} more" if len(links) > FEW else ""
    return f"{word}{'s' if len(links) > 1 else ''} {' '.join(links[:FEW])}{more}"


def _runs_by_seed(runs: pd.DataFrame) -> list[tuple[str, str]]:
    ordered = runs.sort_values("seed")
    return [(str(run), str(seed)) for run, seed in zip(ordered["run"], ordered["seed"], strict=True)]
