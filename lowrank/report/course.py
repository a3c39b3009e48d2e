"""Quantities over the steps of training, read from the runs' TensorBoard event files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pandas as pd

from lowrank.errors import ConfigError
from lowrank.report.context import Context, table
from lowrank.report.frame import groups, need_columns, select, state
from lowrank.report.intervals import interval_columns
from lowrank.report.kinds import Course
from lowrank.report.stats import estimate
from lowrank.strict import suggest

EVENTS = "tensorboard"


@table(Course)
def course(context: Context, name: str) -> pd.DataFrame:
    """A scalar by step: mean over seeds with its t interval, and its moving average where one is asked for.

    A step that some seed of the series does not reach, since it diverged, is left out: a mean over the
    others would jump. `seeds` says how many seeds a row holds.
    """
    view, place = context.table_view(Course, name)
    runs = select(context.runs_at(view.at), view.where, place)
    need_columns(runs, list(view.by), place)
    rows: list[dict[str, Any]] = []
    for keys, cell in groups(runs, view.by):
        drawn = cell[cell["status"].isin(["ok", "diverged"])]
        if drawn["seed"].duplicated().any():
            raise ConfigError(f"{place}: several runs share a series and a seed: `by` leaves out a swept axis")
        series = [_windows(scalars(context.run_folders / run, view.tag, place), view.window) for run in drawn["run"]]
        steps = sorted(set.intersection(*map(set, series))) if series else []
        status, cause = state(cell)
        facts = {"seeds": len(series), "seeds_planned": len(cell), "status": status, "cause": cause}
        average = _Average(view.smoothing)
        for step in steps:
            found = estimate([one[step] for one in series])
            row: dict[str, Any] = {"step": step, **interval_columns(view.tag, found)}
            row |= {"smoothed": average(found.mean)} if view.smoothing else {}
            rows.append({**keys, **row, **facts})
        if not steps:  # a series without a value has a row too, so that it is seen to be missing
            rows.append({**keys, "step": None, view.tag: None, **facts})
    columns = [*view.by, "step", view.tag, f"{view.tag}_low", f"{view.tag}_high"]
    columns += ["smoothed"] if view.smoothing else []
    return pd.DataFrame(rows, columns=[*columns, "seeds", "seeds_planned", "status", "cause"])


def scalars(folder: Path, tag: str, place: str) -> dict[int, float]:
    """Step -> value of one tag of a run's event files.

    Raises:
        ConfigError: the run has event files, and none holds the tag; names those it holds.
    """
    # Here, since only such a table needs it.
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    logging.getLogger("tensorboard").setLevel(logging.WARNING)
    found: dict[int, float] = {}
    tags: set[str] = set()
    for path in sorted((folder / EVENTS).glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                tags.add(value.tag)
                if value.tag == tag:
                    found[int(event.step)] = float(value.tensor.float_val[0])
    if tags and not found:
        raise ConfigError(f"{place}: {folder.name} has no scalar {tag!r}{suggest(tag, tags)}")
    return found


def _windows(values: dict[int, float], window: int) -> dict[int, float]:
    """The mean of each `window` consecutive steps, under the last of them; what is left over is dropped."""
    if window == 1:
        return values
    grouped: dict[int, list[float]] = {}
    for step, value in values.items():
        grouped.setdefault(-(-step // window) * window, []).append(value)
    last = max(values, default=0)
    return {step: sum(some) / len(some) for step, some in grouped.items() if step <= last}


class _Average:
    """TensorBoard's moving average: m <- w m + (1 - w) x, divided by 1 - w^n so that it starts at x."""

    def __init__(self, weight: float) -> None:
        self.weight, self.mean, self.rest = weight, 0.0, 1.0

    def __call__(self, value: float) -> float:
        self.mean = self.weight * self.mean + (1 - self.weight) * value
        self.rest *= self.weight
        return self.mean / (1 - self.rest)
