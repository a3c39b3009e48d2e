"""The code a result depends on, as one hash: editing a comment changes nothing, editing `galore.py` only its users.

Snakemake cannot see `import lowrank`, so rules take these digests as parameters. The closure follows
every import that stands in a module, those inside functions too, but not the registry's discovery:
a chain names its parts, and only those are added.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from lowrank import registry
from lowrank.files import REPOSITORY
from lowrank.spec import EvalSpec, RunSpec
from lowrank.strict import Strict

PACKAGE = Path(__file__).resolve().parent

INERT = frozenset({"lowrank", "lowrank.console", "lowrank.errors"})
"""Modules that cannot change a number: what is printed, and what a failure says."""


def code_digest(entries: Iterable[str]) -> str:
    """12 hex digits over every module of the package that `entries` reach.

    Args:
        entries: dotted module names, such as `lowrank.train.pack`.
    """
    sha = hashlib.sha256()
    for module in sorted(closure(entries)):
        sha.update(f"{module} {_source(PACKAGE, module).sha256}\n".encode())
    return sha.hexdigest()[:12]


def files_digest(paths: Iterable[Path]) -> str:
    """12 hex digits over the bytes of files that code reads: studies, templates, notebooks."""
    sha = hashlib.sha256()
    for path in sorted(paths):
        sha.update(path.name.encode() + b"\n" + path.read_bytes())
    return sha.hexdigest()[:12]


def report_digests(study: str, counted: Sequence[Strict]) -> dict[str, list[str]]:
    """Of a study's report: `code` of its tables, `count_code` of those that are counted, `page_code` of its page."""
    return {"code": _table_digests(study), "count_code": _count_digests(counted), "page_code": _page_digests()}


def _table_digests(study: str) -> list[str]:
    """The code that computes a study's tables, and the files that say which tables, figures and claims it has."""
    places = (REPOSITORY / "workflow" / "studies", REPOSITORY / "resources" / "reported")
    named = [path for place in places if (path := place / f"{study}.yaml").is_file()]
    return [code_digest(["lowrank.report.build", "lowrank.collect"]), files_digest(named)]


def _count_digests(counted: Sequence[Strict]) -> list[str]:
    """The code that counts on shapes, the parts that are counted among it, and what is asked and of which cards."""
    rows = [row for view in counted for row in getattr(view, "rows", ())]
    parts = {registry.part(options.part).__module__ for row in rows for options in registry.parse_chain(row.chain)}
    cards = {REPOSITORY / "resources" / "cards" / "models" / f"{row.card}.yaml" for row in rows}
    asked = hashlib.sha256("\n".join(view.model_dump_json() for view in counted).encode()).hexdigest()[:12]
    return [code_digest(["lowrank.report.build", *parts]), files_digest(cards), asked]


def _page_digests() -> list[str]:
    """The code, templates and notebooks that pages are made of."""
    templates = PACKAGE / "report"
    notebooks = REPOSITORY / "workflow" / "notebooks"
    files = [*templates.glob("*.html"), *templates.glob("*.css"), *templates.glob("*.js"), *notebooks.glob("*.ipynb")]
    return [code_digest(["lowrank.report.page", "lowrank.report.show"]), files_digest(files)]


def train_digest(spec: RunSpec) -> str:
    """The code that a training run can reach: the trainer, the parts of its chain, and who observes it."""
    parts = (registry.part(options.part).__module__ for options in spec.chain)
    observers = (registry.observer(name).__module__ for name in spec.train.observe)
    return code_digest(["lowrank.train.pack", *parts, *observers])


def evaluate_digest(spec: RunSpec) -> str:
    """The code that scoring a run can reach, whatever the protocol."""
    return code_digest(["lowrank.evaluate.pack", *(registry.part(options.part).__module__ for options in spec.chain)])


def protocol_digest(spec: EvalSpec) -> str:
    """The code of an evaluation's protocol."""
    return code_digest([registry.protocol(spec.protocol).__module__])


def closure(entries: Iterable[str]) -> set[str]:
    """Every module of the package that `entries` import, themselves included, inert ones left out."""
    found: set[str] = set()
    pending = [name for name in entries if name not in INERT]
    while pending:
        name = pending.pop()
        if name in found:
            continue
        found.add(name)
        pending += _source(PACKAGE, name).imports - INERT
    return found


class _Source(NamedTuple):
    """What a digest needs of a module."""

    imports: frozenset[str]
    sha256: str
    """Of its code without comments, docstrings and formatting."""


@functools.cache
def _source(package: Path, module: str) -> _Source:
    tree = ast.parse(_path(package, module).read_text(encoding="utf-8"))
    imports: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            imports.add(node.module)
            imports.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [statement for statement in node.body if not _is_bare_string(statement)] or [ast.Pass()]
    own = frozenset(name for name in imports if name.split(".")[0] == package.name and _path(package, name).is_file())
    return _Source(own, hashlib.sha256(ast.unparse(tree).encode()).hexdigest())


def _path(package: Path, module: str) -> Path:
    inside = package.joinpath(*module.split(".")[1:])
    return inside / "__init__.py" if inside.is_dir() else inside.with_suffix(".py")


def _is_bare_string(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
