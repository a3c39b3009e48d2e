"""The fields of a strict record as its code describes them, for pages that are written from the code."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel

REQUIRED = "required"

_KINDS = {
    "PositiveInt": "a whole number > 0",
    "NonNegativeInt": "a whole number >= 0",
    "PositiveFloat": "a number > 0",
    "NonNegativeFloat": "a number >= 0",
    "Fraction": "0 <= value < 1",
    "Float": "a number",
    "bool": "true, false",
    "Names": "names or patterns",
    "str | None": "text",
    "tuple[str, ...]": "a list",
}


@dataclass(frozen=True)
class Field:
    """One field: its default and what is allowed as a page shows them, and the string below it."""

    name: str
    default: str
    allowed: str
    text: str


def fields(record: type[BaseModel], package: str) -> list[Field]:
    """The fields of a record, of records inside it too (`gpu.model`), in the order of the code.

    Args:
        record: the class.
        package: only classes of this package, or of one below it, are read.
    """
    texts: dict[str, tuple[str, str]] = {}
    for parent in reversed(record.__mro__):
        if "model_fields" in dir(parent) and parent.__module__.startswith(package):
            texts |= _texts(parent)
    found = []
    for name, field in record.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            inner = fields(field.annotation, package)
            found += [Field(f"{name}.{one.name}", one.default, one.allowed, one.text) for one in inner]
            continue
        annotation, told = texts[name]
        default = REQUIRED if field.is_required() else _spell(field.default)
        found.append(Field(name, default, _allowed(annotation, field.annotation), told))
    return found


def markdown(found: Iterable[Field], what: str) -> str:
    """Fields as a Markdown table, the first column under the heading `what`."""
    rows = [f"| `{one.name}` | {one.default} | {one.allowed} | {_cell(one.text)} |" for one in found]
    return "\n".join([f"| {what} | default | allowed | meaning |", "|---|---|---|---|", *rows])


def _texts(record: type[Any]) -> dict[str, tuple[str, str]]:
    """Field -> its annotation as written, and the string that stands below it."""
    body = ast.parse(textwrap.dedent(inspect.getsource(record))).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, tuple[str, str]] = {}
    for node, after in zip(body.body, [*body.body[1:], ast.Pass()], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            value = getattr(getattr(after, "value", None), "value", "")
            told = " ".join(value.split()) if isinstance(after, ast.Expr) and isinstance(value, str) else ""
            found[node.target.id] = (ast.unparse(node.annotation), told)
    return found


def _allowed(annotation: str, kind: Any) -> str:
    """What may be given: the words of a Literal, then the kind of value."""
    kinds = [told for name, told in _KINDS.items() if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", annotation)]
    return ", ".join([*(f"`{word}`" for word in _words(kind)), *kinds])


def _words(kind: Any) -> list[str]:
    return [
        word for inner in get_args(kind) for word in ([str(inner)] if isinstance(inner, str | int) else _words(inner))
    ]


def _spell(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cell(told: str) -> str:
    return told.replace("|", "\\|")
