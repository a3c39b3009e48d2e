"""The configurations of a table with what each seed measured: what claims about a table compare."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lowrank.errors import ConfigError
from lowrank.report.context import Context
from lowrank.report.frame import by_seed, meets, need_columns, plain, state
from lowrank.report.items import items_of
from lowrank.report.kinds import SidesClaim, Where
from lowrank.report.stats import Items
from lowrank.report.text import configuration


@dataclass(frozen=True)
class Sample:
    """One row of a table: a metric by seed, or one value that no seed enters."""

    keys: Mapping[str, Any]
    values: Mapping[int, float]
    exact: float | None
    """The value of a table that is computed and not measured."""
    seeds: int
    """How many were planned."""
    status: str
    cause: str
    edge: str = ""
    """At which end of its grid the tuned value lies."""
    tuning: str = ""
    """Says so where nothing was tuned."""
    titles: Mapping[str, str] = field(default_factory=dict)
    """Arm -> its name for a reader."""
    items: Callable[[], Items | None] = lambda: None
    """Reads what each test item added to the metric."""

    @property
    def name(self) -> str:
        """The configuration in words."""
        return str(self.keys["label"]) if "label" in self.keys else configuration(self.keys, self.titles)

    def selected(self, where: Where) -> bool:
        """Whether the configuration meets every condition."""
        return all(meets(self.keys.get(column), condition) for column, condition in where.items())


def samples(context: Context, table: str, metric: str, place: str) -> list[Sample]:
    """Every row of a table with its metric by seed; of a computed table, with its exact value.

    Args:
        context: the study.
        table: its name.
        metric: a column.
        place: starts a message.

    Raises:
        ConfigError: no such column, or a table of means without the runs behind them.
    """
    frame = context.table(table)
    need_columns(frame, [metric], place)
    cells = context.cells(table)
    if cells is None and context.measured(table):
        raise ConfigError(f"{place}: {table!r} holds means, which have no seeds to pair; name the table of their runs")
    if cells is None:
        return [_computed(row, metric) for row in frame.to_dict("records")]
    found = []
    for (keys, runs), row in zip(cells, frame.to_dict("records"), strict=True):
        status, cause = state(runs)
        values = by_seed(runs, metric) if metric in runs and plain(row[metric]) is not None else {}
        edge, tuning = str(row.get("edge") or ""), str(row.get("tuning") or "")
        cause = cause or str(row.get("cause") or "")
        # A tuned row may lack seeds that another of its values has.
        seeds, titles = max(runs["seed"].nunique(), int(row.get("seeds_planned") or 0)), context.views.titles
        items = functools.partial(items_of, context, runs, metric)
        found.append(Sample(keys, values, None, seeds, status, cause, edge, tuning, titles, items))
    return found


def need_all_rows(found: Sequence[Sample], view: SidesClaim, place: str) -> None:
    """Refuses a claim that passes over rows of its table without saying why.

    Passed over is a row in no side that would be in one but for a column that some side names; the arm and the
    label apart, for the sentence names the methods that it compares.

    Raises:
        ConfigError: names the rows.
    """
    sides = view.rests_on()
    named = {column for side in sides for column in side} - {"arm", "label"}
    loose = [{column: condition for column, condition in side.items() if column not in named} for side in sides]
    absent = [
        one.name
        for one in found
        if not any(one.selected(side) for side in sides) and any(one.selected(side) for side in loose)
    ]
    if absent and not view.leaves_out:
        told = f"rows along {', '.join(sorted(named))} are in no side: {'; '.join(absent)}"
        raise ConfigError(f"{place}: {told}; allowed: all of them, or leaves_out with the reason")


def in_order(found: Sequence[Sample], along: str, best: str, place: str) -> list[list[Sample]]:
    """All rows in places by the value of a column, a number or several separated by commas, the best one first.

    Raises:
        ConfigError: a value that is no number.
    """
    places: dict[tuple[float, ...], list[Sample]] = {}
    for one in found:
        try:
            value = tuple(float(part) for part in str(one.keys.get(along)).split(","))
        except ValueError:
            told = f"{along} {one.keys.get(along)!r} is no number"
            raise ConfigError(f"{place}: {told}; allowed: numbers, separated by commas") from None
        places.setdefault(value, []).append(one)
    return [places[value] for value in sorted(places, reverse=best == "most")]


def _computed(row: dict[Any, Any], metric: str) -> Sample:
    value = plain(row[metric])
    status, cause = str(row.get("status", "ok")), str(row.get("cause") or "")
    return Sample(row, {}, None if value is None else float(value), 0, status, cause)
