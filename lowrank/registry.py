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
    base = importlib.import_module(f"{_PACKAGE}.part").Part
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{_PACKAGE}.{module.name}")
    found: dict[str, type[Part]] = {}
    pending = list(base.__subclasses__())
    while pending:
        part = pending.pop()
        pending += part.__subclasses__()
        if "name" not in vars(part):
            continue  # a shared base, not a part of its own
        if part.name in found and found[part.name] is not part:
            raise ConfigError(f"two parts are called {part.name!r}: {found[part.name].__module__}, {part.__module__}")
        found[part.name] = part
    return dict(sorted(found.items()))


def part(name: object) -> type[Part]:
    """The part of that name.

    Raises:
        ConfigError: no such part; names the nearest one.
    """
    if isinstance(name, str) and name.isidentifier() and importlib.util.find_spec(f"{_PACKAGE}.{name}"):
        # A part stands in the module of its name, so a run imports its own parts and no others.
        for found in vars(importlib.import_module(f"{_PACKAGE}.{name}")).values():
            if isinstance(found, type) and vars(found).get("name") == name:
                return cast("type[Part]", found)
    known = parts()
    if not isinstance(name, str) or name not in known:
        raise ConfigError(f"unknown part {name!r}{suggest(name, known)}")
    return known[name]


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
