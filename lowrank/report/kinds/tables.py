"""The kinds of tables."""

from __future__ import annotations

from typing import Literal

from lowrank.report.kinds.base import TableView, Value, Where


class Summary(TableView):
    """One row per combination of `by`: mean over seeds with its interval, and what is missing."""

    kind: Literal["summary"]
    by: tuple[str, ...]
    metrics: tuple[str, ...]
    where: Where = {}
    results_json: bool = False
    """Also writes `results_<configuration>.json` in the shape that the lr_ratio document publishes."""


class Optima(TableView):
    """One row per combination of `by`: the best value along `axis`, its ties, and its ratio to a baseline."""

    kind: Literal["optima"]
    by: tuple[str, ...]
    axis: str
    metric: str
    goal: Literal["min", "max"] = "min"
    where: Where = {}
    baseline: Where
    """The rows whose optimum the ratio divides by."""
    match: tuple[str, ...] = ()
    """Columns in which an optimum and its baseline agree."""
    carry: tuple[str, ...] = ()
    """Further columns, averaged over seeds at the optimum."""


class Settings(TableView):
    """The distinct values that the runs have in each column."""

    kind: Literal["settings"]
    columns: tuple[str, ...]


class Coverage(TableView):
    """The document's grid against the runs of this scale, one row per combination of `by`."""

    kind: Literal["coverage"]
    by: tuple[str, ...]
    axis: str
    grid: tuple[dict[str, Value | tuple[Value, ...]], ...]
    """Products of axes, as in a sweep."""


class DocumentCurves(TableView):
    """What the document's own curves say of their optima, within the accuracy of reading them."""

    kind: Literal["document_curves"]
    curves: tuple[str, ...]
    """Artefacts of the published numbers whose rows name a value of `axis`."""
    axis: str
    baseline: dict[str, Value]
    stated: str
    """The artefact that states the ratios."""
