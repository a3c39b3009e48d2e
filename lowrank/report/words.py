"""Numbers as words, by stated rules; and the perplexity that a training loss would give."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from lowrank.errors import ConfigError
from lowrank.report.comparisons import advantage, beats, compared, obstacle
from lowrank.report.context import Context, check, table
from lowrank.report.export import epoch_losses
from lowrank.report.frame import groups, meets, plain, select, state, with_metrics
from lowrank.report.judging import combine
from lowrank.report.kinds import TrainingPerplexity, Use, Word, WordClaim, Words
from lowrank.report.samples import Sample, samples
from lowrank.report.stats import estimate
from lowrank.report.text import configuration, label, number
from lowrank.report.verdicts import Finding
from lowrank.run_folder import HISTORY

OR = " or "
"""Between the words of a cell that its interval leaves open."""


@table(Words)
def words(context: Context, name: str) -> pd.DataFrame:
    """Each row's words, the ratios they follow from, and its use.

    ratio = 1 + (paired difference from the baseline) / (the baseline's mean), its interval that of the difference.
    A cell has every word whose limits the interval touches; none where a number, the baseline's or an interval is
    missing.
    """
    view, place = context.table_view(Words, name)
    columns = list(dict.fromkeys([*(word.column for word in view.words.values()), *(use.column for use in view.uses)]))
    measured = {column: _chosen(samples(context, view.table, column, place), view) for column in columns}
    found = select(context.table(view.table), view.where, place)
    bases = [index for index, row in enumerate(found.to_dict("records")) if _is_base(row, view)]
    if len(bases) > 1:
        raise ConfigError(f"{place}: baseline {view.baseline} names {len(bases)} rows of {view.table}; allowed: one")
    keys = [column for column in found if column not in _numbers(found, columns)]
    rows = []
    for index, record in enumerate(found.to_dict("records")):
        row = {str(key): record[key] for key in keys if key not in ("status", "cause")}
        for column, word in view.words.items():
            base = measured[word.column][bases[0]] if bases else None
            ratio, low, high = _ratio(measured[word.column][index], base, word.column)
            row |= {column: _said(low, high, word)}
            row |= {f"{column}_ratio": ratio, f"{column}_ratio_low": low, f"{column}_ratio_high": high}
        row["use"] = _use(index, measured, view)
        rows.append({**row, **{key: record.get(key, "") for key in ("status", "cause")}})
    return pd.DataFrame(rows)


def _chosen(found: list[Sample], view: Words) -> list[Sample]:
    return [one for one in found if one.selected(view.where)]


def _is_base(row: dict[Any, Any], view: Words) -> bool:
    return all(meets(row.get(column), condition) for column, condition in view.baseline.items())


def _numbers(found: pd.DataFrame, columns: list[str]) -> list[str]:
    ends = [f"{column}{end}" for column in columns for end in ("", "_low", "_high")]
    return [column for column in found if column in ends]


def _ratio(one: Sample, base: Sample | None, column: str) -> tuple[float | None, float | None, float | None]:
    """A row's ratio to the baseline and its ends; the ends are missing where one seed ran."""
    if base is None or obstacle(one, base, column) is not None:
        return None, None, None
    gain = advantage((one, base), "max")
    mean = base.exact if base.exact is not None else sum(base.values.values()) / len(base.values)
    if gain is None or not mean:
        return None, None, None
    low, high = (None if end is None else 1 + end / mean for end in (gain.low, gain.high))
    return 1 + gain.mean / mean, low, high


def _said(low: float | None, high: float | None, word: Word) -> str | None:
    if low is None or high is None:
        return None
    texts = [*(text for _, text in word.limits), word.beyond]
    first, last = (sum(end > limit for limit, _ in word.limits) for end in (low, high))
    return OR.join(texts[first : last + 1])


def _use(index: int, measured: dict[str, list[Sample]], view: Words) -> str | None:
    """The first use in which a row beats every other; with those before it that stay open."""
    found = []
    for use in view.uses:
        verdict = _leads(index, measured[use.column], use, view.table)
        if verdict in ("not resolved", "not run"):
            found.append(use.text)
        if verdict == "reproduced":
            return OR.join([*found, use.text])
    return OR.join([*found, view.otherwise])


def _leads(index: int, found: list[Sample], use: Use, table: str) -> str:
    pairs = [(found[index], one) for place, one in enumerate(found) if place != index]
    return combine(*compared(pairs, beats(table, use.column, use.goal))).verdict


@check(WordClaim)
def word(context: Context, view: WordClaim, optima: None) -> Finding:
    """Whether rows have a word: theirs alone, one of several that the interval leaves open, or another."""
    words_view, place = context.table_view(Words, view.table)
    parts, everything = [], context.table(view.table)
    bases = [row for row in everything.to_dict("records") if _is_base(row, words_view)]
    for row in select(everything, view.where, place).to_dict("records"):
        name = configuration({key: row.get(key) for key in view.where}, context.views.titles)
        said = plain(row.get(view.column))
        ratio, low, high = (plain(row.get(f"{view.column}_ratio{end}")) for end in ("", "_low", "_high"))
        told = f"{name}: {label(view.column)} {said}"
        if low is not None and high is not None:
            told += f", ratio {number(ratio)}" + ("" if low == high else f" [{number(low)}, {number(high)}]")
        elif said is not None and OR in said:
            told += ": which row is the best is not told apart"
        if view.column in words_view.words and _is_base(row, words_view):
            parts.append(Finding("by construction", f"{name} is what the ratios divide by, so its own is 1: {said}"))
        elif said is None:
            missing = str(row.get("status", "ok")) in ("missing", "failed")
            why = row.get("cause") or ("no value" if ratio is None else "one seed")
            parts.append(Finding("not run" if missing else "not resolved", f"{name}: {why}"))
        elif OR in said and view.equals in said.split(OR):
            parts.append(Finding("not resolved", told))
        elif low != high and (edges := [one for one in (row, *bases) if one.get("edge")]):
            who = [configuration({key: one.get(key) for key in view.where}, context.views.titles) for one in edges]
            parts.append(Finding("not resolved", f"{told}; but {', '.join(who)}: tuned to the edge of its grid"))
        else:
            parts.append(Finding("reproduced" if said == view.equals else "differs", told))
    return combine(parts, ())


@table(TrainingPerplexity)
def training_perplexity(context: Context, name: str) -> pd.DataFrame:
    """exp of the last epoch's mean training loss, mean over seeds, beside means of metrics.

    last_epoch_loss: mean training loss over the steps of the last epoch (nats); training_perplexity: its exp, between
    the exp of the ends of its interval.
    """
    view, place = context.table_view(TrainingPerplexity, name)
    runs = with_metrics(select(context.runs, view.where, place), view.metrics, place)
    rows = []
    for keys, cell in groups(runs, view.by):
        good = cell[cell["status"] == "ok"]
        losses = [epoch_losses(context.run_folders / str(run) / HISTORY)[0] for run in good["run"]]
        last = [epochs[-1] for epochs in losses if epochs]
        loss = estimate(last) if last else None
        ends = [] if loss is None else [("", loss.mean), ("_low", loss.low), ("_high", loss.high)]
        status, cause = state(cell)
        rows.append(
            {
                **keys,
                "last_epoch_loss": None if loss is None else loss.mean,
                "training_perplexity": None,
                **{f"training_perplexity{end}": None if value is None else math.exp(value) for end, value in ends},
                **{metric: plain(good[metric].mean()) if len(good) else None for metric in view.metrics},
                "seeds": len(good),
                "seeds_planned": len(cell),
                "status": status,
                "cause": cause,
            }
        )
    return pd.DataFrame(rows)
