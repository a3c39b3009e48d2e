"""What a table, figure or check may look at, and how it is found by the kind of its view."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from lowrank.errors import ConfigError
from lowrank.report.kinds import Optima, OptimaClaim
from lowrank.report.ledger import Ledger
from lowrank.report.views import Views

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from lowrank.report.optimum import Optimum
    from lowrank.report.verdicts import Finding

RunsOfRow = tuple[dict[str, Any], "pd.DataFrame"]
"""What makes a row of a table, and the runs behind it."""

Function = TypeVar("Function", bound=Callable[..., Any])
View = TypeVar("View")

TABLES: dict[str, Callable[[Context, str], pd.DataFrame]] = {}
FIGURES: dict[str, Callable[[Context, str], Any]] = {}
CHECKS: dict[str, Callable[..., Finding]] = {}
CELLS: dict[str, Callable[[Context, str], list[RunsOfRow]]] = {}
"""Kinds of tables whose rows are made of runs, one run for each seed."""


@dataclass
class Context:
    """One study at one scale, while its views are built; tables, the runs behind them and optima are found once."""

    study: str
    scale: str
    views: Views
    ledger: Ledger
    runs: pd.DataFrame
    run_folders: Path
    out: Path
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    asked: Mapping[str, str] = field(default_factory=dict)
    """Label of an evaluation -> its id, under which runs hold what it found."""
    items: dict[tuple[str, str, str], NDArray[np.float64]] = field(default_factory=dict)
    """(run, evaluation, name) -> what it recorded of each test item, read once."""
    _cells: dict[str, list[RunsOfRow] | None] = field(default_factory=dict)
    _optima: dict[str, list[Optimum]] = field(default_factory=dict)

    def table_view(self, record: type[View], name: str) -> tuple[View, str]:
        """The view of the table of that name, which is of that kind, and its place for messages."""
        return _of(record, self.views.tables[name]), f"{self.study}: tables.{name}"

    def figure_view(self, record: type[View], name: str) -> tuple[View, str]:
        """The same for a figure."""
        return _of(record, self.views.figures[name]), f"{self.study}: figures.{name}"

    def table(self, name: str) -> pd.DataFrame:
        """The table of that name."""
        if name not in self.tables:
            kind = _kind(self.views.tables[name], "kind")
            self.tables[name] = TABLES[kind](self, name)
        return self.tables[name]

    def cells(self, name: str) -> list[RunsOfRow] | None:
        """The runs behind each row of a table, in its order; None for a table that no run enters."""
        if name not in self._cells:
            kind = _kind(self.views.tables[name], "kind")
            self._cells[name] = CELLS[kind](self, name) if kind in CELLS else None
        return self._cells[name]

    def runs_at(self, name: str | None) -> pd.DataFrame:
        """The runs behind the rows of a table; all of the study's where none is named."""
        import pandas as pd

        if name is None:
            return self.runs
        cells = self.cells(name)
        if cells is None:
            raise ConfigError(f"{self.study}: tables.{name}: no runs stand behind its rows; allowed: a table of runs")
        return pd.concat([self.runs.iloc[:0], *(runs for _, runs in cells)])

    def measured(self, name: str) -> bool:
        """Whether means over seeds enter a table, or a table that it is computed from: such a value has an interval."""
        view = self.views.tables[name]
        return view.kind in CELLS or any(map(self.measured, view.reads()))  # type: ignore[attr-defined]

    def optima(self, name: str) -> list[Optimum]:
        """The optima that the table of that name shows."""
        if name not in self._optima:
            from lowrank.report.items import items_of
            from lowrank.report.optima import find_optima

            items = functools.partial(items_of, self)
            self._optima[name] = find_optima(self.runs, *self.table_view(Optima, name), items)
        return self._optima[name]

    def draw(self, name: str) -> Any:
        """The figure of that name, as a matplotlib figure."""
        return FIGURES[_kind(self.views.figures[name], "kind")](self, name)

    def check(self, name: str) -> Finding:
        """What the runs say of the claim of that name."""
        view = self.views.claims[name]
        optima = self.optima(view.table) if isinstance(view, OptimaClaim) else None
        return CHECKS[_kind(view, "check")](self, view, optima)


def _of(record: type[View], view: object) -> View:
    assert isinstance(view, record)  # parse_views has seen to it
    return view


def _kind(view: Any, key: str) -> str:
    return str(getattr(view, key))


def _name(record: type[Any], key: str) -> str:
    return str(get_args(record.model_fields[key].annotation)[0])


def table(record: type[Any]) -> Callable[[Function], Function]:
    """Registers a function `(context, name) -> data frame` for a kind of table."""
    return _register(TABLES, _name(record, "kind"))


def cells(record: type[Any]) -> Callable[[Function], Function]:
    """Registers a function `(context, name) -> [(keys, runs)]`, one for each row of a kind of table.

    A claim compares the rows of such a table by seed. A kind without one holds computed, exact values.
    """
    return _register(CELLS, _name(record, "kind"))


def figure(record: type[Any]) -> Callable[[Function], Function]:
    """Registers a function `(context, name) -> figure` for a kind of figure."""
    return _register(FIGURES, _name(record, "kind"))


def check(record: type[Any]) -> Callable[[Function], Function]:
    """Registers a function `(context, view, optima) -> finding` for a kind of claim."""
    return _register(CHECKS, _name(record, "check"))


def _register(registry: dict[str, Any], name: str) -> Callable[[Function], Function]:
    def keep(function: Function) -> Function:
        assert name not in registry, f"two functions for {name}"
        registry[name] = function
        return function

    return keep
