"""The kinds of tables, figures and claims: what each may be told in a study's YAML.

A kind is a record here and a function in a module of `lowrank.report`, joined by `@table(record)` and
its siblings; a test holds the two together. Nothing heavy is imported.
"""

from lowrank.report.kinds.base import CellRef, ClaimView, FigureView, Goal, Range, TableView, Value, Where
from lowrank.report.kinds.claims import (
    Case,
    CompareClaim,
    DependsClaim,
    GridResolutionClaim,
    OptimaClaim,
    OrderClaim,
    OutperformsClaim,
    RatioClaim,
    ResultsSchemaClaim,
    TableClaim,
    TiedClaim,
    WithinClaim,
)
from lowrank.report.kinds.figures import Bars, Curves, Lines, Scatter
from lowrank.report.kinds.tables import (
    Arithmetic,
    ArithmeticRow,
    CountRow,
    Counts,
    Course,
    Coverage,
    DocumentCurves,
    Optima,
    Pivot,
    Records,
    Settings,
    Summary,
    Tuned,
)

__all__ = [
    "Arithmetic",
    "ArithmeticRow",
    "Bars",
    "Case",
    "CellRef",
    "ClaimView",
    "CompareClaim",
    "CountRow",
    "Counts",
    "Course",
    "Coverage",
    "Curves",
    "DependsClaim",
    "DocumentCurves",
    "FigureView",
    "Goal",
    "GridResolutionClaim",
    "Lines",
    "Optima",
    "OptimaClaim",
    "OrderClaim",
    "OutperformsClaim",
    "Pivot",
    "Range",
    "RatioClaim",
    "Records",
    "ResultsSchemaClaim",
    "Scatter",
    "Settings",
    "Summary",
    "TableClaim",
    "TableView",
    "TiedClaim",
    "Tuned",
    "Value",
    "Where",
    "WithinClaim",
]
