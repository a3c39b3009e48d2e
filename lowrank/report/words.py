"""Numbers as words, by stated rules; and the perplexity that a training loss would give."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from lowrank.errors import ConfigError
from lowrank.report.context import Context, table
from lowrank.report.export import epoch_losses
from lowrank.report.frame import groups, plain, select, state, with_metrics
from lowrank.report.kinds import TrainingPerplexity, Use, Word, Words
from lowrank.run_folder import HISTORY


@table(Words)
def words(context: Context, name: str) -> pd.DataFrame:
    """Each row's words, the ratios they follow from, and its use.

    A word is missing where its number is, or the baseline's.
    """
    view, place = context.table_view(Words, name)
    found = select(context.table(view.table), view.where, place)
    base = select(found, view.baseline, place).to_dict("records")
    if len(base) > 1:
        raise ConfigError(f"{place}: baseline {view.baseline} names {len(base)} rows of {view.table}; allowed: one")
    columns = [*(word.column for word in view.words.values()), *(use.column for use in view.uses)]
    numbers = [column for column in found if column in columns or str(column).rsplit("_", 1)[0] in columns]
    keys = [column for column in found if column not in numbers]
    rows = []
    for record in found.to_dict("records"):
        row = {str(key): record[key] for key in keys if key not in ("status", "cause")}
        for label, word in view.words.items():
            ratio = _ratio(record, base, word.column)
            row |= {label: _word(ratio, word), f"{label}_ratio": ratio}
        best = [use.text for use in view.uses if _is_best(record, found, use)]
        row["use"] = best[0] if best else view.otherwise
        rows.append({**row, **{key: record.get(key, "") for key in ("status", "cause")}})
    return pd.DataFrame(rows)


def _ratio(record: dict[Any, Any], base: list[dict[Any, Any]], column: str) -> float | None:
    value, other = plain(record.get(column)), plain(base[0].get(column)) if base else None
    return None if value is None or not other else float(value) / float(other)


def _word(ratio: float | None, word: Word) -> str | None:
    if ratio is None:
        return None
    return next((text for limit, text in word.limits if ratio <= limit), word.beyond)


def _is_best(record: dict[Any, Any], found: pd.DataFrame, use: Use) -> bool:
    if use.column not in found or plain(record.get(use.column)) is None:
        return False
    values = found[use.column].dropna()
    best = values.min() if use.goal == "min" else values.max()
    return bool(record[use.column] == best and (values == best).sum() == 1)


@table(TrainingPerplexity)
def training_perplexity(context: Context, name: str) -> pd.DataFrame:
    """exp of the last epoch's mean training loss, mean over seeds, beside means of metrics.

    last_epoch_loss: mean training loss over the steps of the last epoch (nats); training_perplexity: its exp.
    """
    view, place = context.table_view(TrainingPerplexity, name)
    runs = with_metrics(select(context.runs, view.where, place), view.metrics, place)
    rows = []
    for keys, cell in groups(runs, view.by):
        good = cell[cell["status"] == "ok"]
        losses = [epoch_losses(context.run_folders / str(run) / HISTORY)[0] for run in good["run"]]
        last = [epochs[-1] for epochs in losses if epochs]
        loss = sum(last) / len(last) if last else None
        status, cause = state(cell)
        rows.append(
            {
                **keys,
                "last_epoch_loss": loss,
                "training_perplexity": None if loss is None else math.exp(loss),
                **{metric: plain(good[metric].mean()) if len(good) else None for metric in view.metrics},
                "seeds": len(good),
                "seeds_planned": len(cell),
                "status": status,
                "cause": cause,
            }
        )
    return pd.DataFrame(rows)
