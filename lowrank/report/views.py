"""What a study shows, as its YAML says it: `tables`, `figures` and `claims`, each entry of a registered kind.

Nothing heavy is imported here, so that a plan can refuse a wrong view before anything is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from lowrank.errors import ConfigError
from lowrank.report.columns import Columns
from lowrank.report.kinds import ClaimView, Course, Curves, FigureView, Optima, OptimaClaim, TableView
from lowrank.strict import Name, Strict, parse, suggest


class Views(Strict):
    """The three sections of a study, validated."""

    tables: dict[Name, TableView]
    figures: dict[Name, FigureView]
    claims: dict[Name, ClaimView]
    titles: dict[str, str] = {}
    """Arm -> its name for a reader."""
    evaluations: dict[str, Any] = {}
    """Label -> what is asked, as the study says it."""

    def columns(self) -> Columns:
        """Names and meanings of the study's columns."""
        asked = {label: str(entry.get("protocol", "score")) for label, entry in self.evaluations.items()}
        return Columns(self.titles, asked)

    def counted(self) -> list[str]:
        """The tables that follow from shapes alone."""
        return [name for name, view in self.tables.items() if view.counted]

    def from_runs(self, table: str | None) -> bool:
        """Whether something that runs measured enters a table, or a table that it is computed from."""
        view = None if table is None else self.tables[table]
        return view is not None and (view.of_runs or any(map(self.from_runs, view.reads())))

    def outputs(self) -> list[str]:
        """Every file that `build_study` and, of counted tables, `count_study` always write."""
        tables = [f"{name}.{kind}" for name in self.tables for kind in ("csv", "html")]
        figures = [f"{name}.{kind}" for name in self.figures for kind in ("svg", "png")]
        return ["runs.csv", *tables, *figures, "claims.json"]


def kinds(base: type[Strict], key: str) -> dict[str, type[Strict]]:
    """Every kind of table, figure or claim by name: the records below `base` that fix `key`."""
    found: dict[str, type[Strict]] = {}
    for record in base.__subclasses__():
        if key in record.model_fields:
            found[get_args(record.model_fields[key].annotation)[0]] = record
        found |= kinds(record, key)
    return dict(sorted(found.items()))


def parse_views(raw: Mapping[str, Any], where: str) -> Views:
    """Validates the sections `tables`, `figures` and `claims` of a study.

    Args:
        raw: the study; of the three sections, one that is missing or empty shows nothing.
        where: the study, which starts each message.

    Raises:
        ConfigError: an unknown kind, option, table or column; names the place and what is allowed.
    """
    tables = _section(raw, "tables", TableView, "kind", where)
    figures = _section(raw, "figures", FigureView, "kind", where)
    claims = _section(raw, "claims", ClaimView, "check", where)
    titles = {name: str(arm["title"]) for name, arm in (raw.get("arms") or {}).items()}
    views = Views.model_construct(
        tables=tables, figures=figures, claims=claims, titles=titles, evaluations=raw.get("evaluations") or {}
    )
    for name, view in tables.items():
        asked = getattr(view, "evaluation", None)
        if asked is not None and asked not in views.evaluations:
            known = suggest(asked, views.evaluations)
            raise ConfigError(f"{where}: tables.{name}: evaluation: unknown evaluation {asked!r}{known}")
    shown = raw.get("key_figure")
    if shown is not None and shown not in figures:
        raise ConfigError(f"{where}: key_figure: unknown figure {shown!r}{suggest(shown, figures)}")
    for name in raw.get("key_claims") or ():
        if name not in claims:
            raise ConfigError(f"{where}: key_claims: unknown claim {name!r}{suggest(name, claims)}")
    for index, (name, view) in enumerate(tables.items()):
        for table in view.reads():
            before = list(tables)[:index]
            if table not in before:
                hint = suggest(table, before)
                raise ConfigError(f"{where}: tables.{name}: {table!r} is no table that stands before it{hint}")
    for section in (figures, claims):
        for name, view in section.items():
            table = getattr(view, "table", None)
            if table is not None and table not in tables:
                raise ConfigError(f"{where}: {name}: table: unknown table {table!r}{suggest(table, tables)}")
            if isinstance(view, Curves) and not isinstance(tables[view.table], Course):
                raise ConfigError(f"{where}: {name}: table: {view.table!r} is no table of kind course")
            if isinstance(view, OptimaClaim) and not isinstance(tables[view.table], Optima):
                raise ConfigError(f"{where}: {name}: table: {view.table!r} is no table of optima")
    return views


def _section(raw: Mapping[str, Any], section: str, base: type[Strict], key: str, where: str) -> dict[str, Any]:
    known = kinds(base, key)
    found: dict[str, Any] = {}
    for name, entry in (raw.get(section) or {}).items():
        place = f"{where}: {section}.{name}"
        kind = entry.get(key) if isinstance(entry, Mapping) else None
        if not isinstance(kind, str) or kind not in known:
            raise ConfigError(f"{place}.{key}: unknown {key} {kind!r}{suggest(kind, known)}")
        parse(_Named, {"name": name}, place)
        found[name] = parse(known[kind], entry, place)
    return found


class _Named(Strict):
    name: Name
