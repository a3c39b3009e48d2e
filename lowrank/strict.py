"""Strict typed records: unknown keys are refused with the nearest known name, numbers are parsed once."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from lowrank.errors import ConfigError


class Strict(BaseModel):
    """A frozen record that refuses what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _as_float(value: object) -> object:
    # YAML 1.1 reads 1e-4 as a string, so a number may arrive spelled out.
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a number")
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"{value!r} is not a number") from None
    return value


def _as_int(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a whole number")
    number = _as_float(value)
    if isinstance(number, float) and number.is_integer():
        return int(number)
    if not isinstance(number, int):
        raise ValueError(f"{value!r} is not a whole number")
    return number


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return value


def _above(limit: float, allow_equal: bool = False) -> AfterValidator:
    def check(value: float) -> float:
        if value < limit or (value == limit and not allow_equal):
            raise ValueError(f"{value!r} is out of range, allowed: {'>=' if allow_equal else '>'} {limit:g}")
        return value

    return AfterValidator(check)


def _fraction(value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"{value!r} is out of range, allowed: 0 <= value < 1")
    return value


Float = Annotated[float, BeforeValidator(_as_float), AfterValidator(_finite)]
PositiveFloat = Annotated[Float, _above(0)]
NonNegativeFloat = Annotated[Float, _above(0, allow_equal=True)]
Fraction = Annotated[Float, AfterValidator(_fraction)]
Int = Annotated[int, BeforeValidator(_as_int)]
PositiveInt = Annotated[Int, _above(0)]
NonNegativeInt = Annotated[Int, _above(0, allow_equal=True)]

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]*"
Name = Annotated[str, StringConstraints(pattern=rf"^{NAME_PATTERN}$", strict=True)]
"""Names become paths: no slash, no leading dot, nothing a shell would read."""

Record = TypeVar("Record", bound=BaseModel)


def suggest(word: object, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` or nothing, then what is allowed."""
    names = sorted(known)
    close = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (allowed: {', '.join(names) or 'none'})"


def parse(record: type[Record], data: object, where: str) -> Record:
    """Validates `data` as `record`.

    Args:
        record: the pydantic model.
        data: what YAML, JSON or a caller gave.
        where: the file or place that the data came from, which starts each message.

    Raises:
        ConfigError: every fault found, one a line: place, value, what is allowed.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected keys and values, found {type(data).__name__} {data!r}")
    try:
        return record.model_validate(dict(data))
    except ValidationError as error:
        lines = [explain(record, detail, where) for detail in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def explain(record: type[BaseModel], detail: ErrorDetails, where: str) -> str:
    """One sentence for one fault: place, value, what is allowed."""
    path = [part for part in detail["loc"] if not str(part).startswith("function-")]
    place = f"{where}: {'.'.join(str(part) for part in path)}" if path else where
    if detail["type"] == "extra_forbidden":
        return f"{place}: unknown key {path[-1]!r}{suggest(path[-1], _known_keys(record, path[:-1]))}"
    if detail["type"] == "missing":
        return f"{place}: missing, and it has no default"
    if detail["type"] == "string_pattern_mismatch":
        return f"{place}: {detail['input']!r} is not a name; allowed: letters, digits, '.', '_' and '-', no leading '.'"
    message = detail["msg"].removeprefix("Value error, ")
    shown = repr(detail["input"])
    if shown in message or detail["type"] == "value_error":
        return f"{place}: {message}"
    return f"{place}: {shown} is refused: {message[:1].lower()}{message[1:]}"


def _known_keys(record: Any, path: list[Any]) -> list[str]:
    """The field names of the record that `path` leads to; of the nearest one that can be found."""
    current = record
    for part in path:
        fields = getattr(current, "model_fields", None)
        if not fields or part not in fields:
            continue  # an index, a mapping's key or a union's tag: the same record goes on
        found = _record_in(fields[part].annotation, path)
        if found is None:
            return []
        current = found
    return list(getattr(current, "model_fields", {}))


def _record_in(annotation: Any, path: list[Any]) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [_record_in(inner, path) for inner in getattr(annotation, "__args__", ())]
    records = [record for record in found if record is not None]
    for record in records:  # a union discriminated by `kind` names the member in the path
        kind = record.model_fields.get("kind")
        if kind is not None and any(part in getattr(kind.annotation, "__args__", ()) for part in path):
            return record
    return records[0] if records else None
