"""Finds the parts: every module of `lowrank.methods` that defines one, with nothing listed by hand."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
from typing import TYPE_CHECKING, Any, cast

from lowrank.errors import ConfigError
from lowrank.strict import suggest

if TYPE_CHECKING:
    from lowrank.methods.part import Part

_PACKAGE = "lowrank.methods"


@functools.cache
def parts() -> dict[str, type[Part]]:
    """Every part by name, in alphabetical order."""
    package = importlib.import_module(_PACKAGE)
    found: dict[str, type[Part]] = {}
    for module in pkgutil.iter_modules(package.__path__):
        for name, part in _defined_in(f"{_PACKAGE}.{module.name}").items():
            if name in found:
                raise ConfigError(f"two parts are called {name!r}: {found[name].__module__}, {part.__module__}")
            found[name] = part
    return dict(sorted(found.items()))


def part(name: object) -> type[Part]:
    """The part of that name. Only its own module is imported where that has the part's name.

    Raises:
        ConfigError: no such part; names the nearest one.
    """
    if isinstance(name, str) and name.isidentifier() and importlib.util.find_spec(f"{_PACKAGE}.{name}"):
        found = _defined_in(f"{_PACKAGE}.{name}")
        if name in found:
            return found[name]
    known = parts()
    if not isinstance(name, str) or name not in known:
        raise ConfigError(f"unknown part {name!r}{suggest(name, known)}")
    return known[name]


def _defined_in(module: str) -> dict[str, type[Part]]:
    """The parts that a module defines; one it only imports, or a shared base without a name, is none of its own."""
    classes = [value for value in vars(importlib.import_module(module)).values() if isinstance(value, type)]
    own = [cast("type[Part]", value) for value in classes if value.__module__ == module and hasattr(value, "Options")]
    return {part.name: part for part in own if "name" in vars(part)}


def parse_options(entry: Any) -> Any:
    """Turns one entry of a chain into the options record of its part.

    Args:
        entry: `"lora"`, `{"part": "lora", "rank": 8}`, or an options record.

    Raises:
        ConfigError: unknown part.
        pydantic.ValidationError: an option is unknown or out of range.
    """
    if isinstance(entry, str):
        entry = {"part": entry}
    if isinstance(entry, dict):
        if "part" not in entry:
            raise ConfigError(f"an entry of a chain names its part, as in {{part: lora, rank: 8}}; found {entry!r}")
        return part(entry["part"]).Options.model_validate({k: v for k, v in entry.items() if k != "part"})
    return entry
