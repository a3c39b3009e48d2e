"""The kinds of tables, figures and claims: what each may be told in a study's YAML.

A kind is a record here and a function in a module of `lowrank.report`, joined by `@table(record)` and
its siblings; a test holds the two together. Nothing heavy is imported.
"""

from lowrank.report.kinds.base import ClaimView, FigureView, Range, TableView, Value, Where
from lowrank.report.kinds.claims import (
    Case,
    DependsClaim,
    GridResolutionClaim,
    OptimaClaim,
    OutperformsClaim,
    RatioClaim,
    ResultsSchemaClaim,
    TiedClaim,
)
from lowrank.report.kinds.figures import Lines
from lowrank.report.kinds.tables import Coverage, DocumentCurves, Optima, Settings, Summary

__all__ = [
    "Case",
    "ClaimView",
    "Coverage",
    "DependsClaim",
    "DocumentCurves",
    "FigureView",
    "GridResolutionClaim",
    "Lines",
    "Optima",
    "OptimaClaim",
    "OutperformsClaim",
    "Range",
    "RatioClaim",
    "ResultsSchemaClaim",
    "Settings",
    "Summary",
    "TableView",
    "TiedClaim",
    "Value",
    "Where",
]
