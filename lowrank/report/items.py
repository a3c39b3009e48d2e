"""What single test items add to a metric, as the evaluations recorded it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lowrank.errors import IntegrityError
from lowrank.files import read_json
from lowrank.report.context import Context
from lowrank.report.stats import Items
from lowrank.run_folder import EVALUATIONS

RECORDED = {"accuracy": "correct", "loss": "loss", "perplexity": "loss"}
"""A metric's name -> what its protocol records of each item; F1 is no mean over items."""


def items_of(context: Context, runs: pd.DataFrame, metric: str) -> Items | None:
    """The items of a metric for the runs of one cell, one run for each seed; None where none are recorded.

    Of a perplexity P = exp(mean loss) an item adds P x its loss, which is how P moves with the losses.

    Raises:
        IntegrityError: runs that differ in their seed alone were scored on different numbers of items.
    """
    label, _, name = metric.rpartition("_")
    evaluation, wanted = context.asked.get(label), RECORDED.get(name)
    good = runs[runs["status"] == "ok"]
    if evaluation is None or wanted is None or metric not in good:
        return None
    good = good[good[metric].notna()]
    found = {int(seed): _read(context, str(run), evaluation, wanted) for seed, run in zip(good["seed"], good["run"])}
    counts = {len(values) for values in found.values()}
    if len(counts) > 1:
        raise IntegrityError(
            f"{context.study}: {metric}: {list(good['run'])} have {sorted(counts)} items; allowed: one"
        )
    if max(counts, default=0) < 2:
        return None
    if name == "perplexity":
        found = {int(seed): found[int(seed)] * value for seed, value in zip(good["seed"], good[metric])}
    split = (evaluation, *(str(good[column].iloc[0]) for column in ("data_card", "data_title") if column in good))
    return Items(found, split)


def _read(context: Context, run: str, evaluation: str, wanted: str) -> NDArray[np.float64]:
    key = run, evaluation, wanted
    if key not in context.items:
        path = context.run_folders / run / EVALUATIONS / f"{evaluation}.json"
        recorded = read_json(path)["items"].get(wanted, []) if path.is_file() else []
        context.items[key] = np.asarray(recorded, dtype=np.float64)
    return context.items[key]
