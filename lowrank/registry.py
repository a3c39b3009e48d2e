"""Finds parts, protocols and observers: every module of their package that defines one, with nothing listed by hand."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError

from lowrank.errors import ConfigError
from lowrank.strict import explain, suggest

if TYPE_CHECKING:
    from lowrank.evaluate.protocol import Protocol
    from lowrank.methods.part import Part
    from lowrank.train.observer import Observer

PARTS = ("lowrank.methods",)
PROTOCOLS = ("lowrank.evaluate.protocols", "lowrank.trainer.protocols")
OBSERVERS = ("lowrank.train.observers",)


def parts() -> dict[str, type[Part]]:
    """Every part by name, in alphabetical order."""
    return _all(PARTS, "part")


def part(name: object) -> type[Part]:
    """The part of that name. Only its own module is imported where that has the part's name.

    Raises:
        ConfigError: no such part; names the nearest one.
    """
    return cast("type[Part]", _one(PARTS, "part", name))


def protocols() -> dict[str, type[Protocol]]:
    """Every protocol by name, in alphabetical order."""
    return _all(PROTOCOLS, "protocol")


def protocol(name: object) -> type[Protocol]:
    """The protocol of that name, found as a part is.

    Raises:
        ConfigError: no such protocol; names the nearest one.
    """
    return cast("type[Protocol]", _one(PROTOCOLS, "protocol", name))


def observer(name: object) -> type[Observer]:
    """The observer of that name, found as a part is.

    Raises:
        ConfigError: no such observer; names the nearest one.
    """
    return cast("type[Observer]", _one(OBSERVERS, "observer", name))


@functools.cache
def _all(homes: tuple[str, ...], noun: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    places = [(home, importlib.import_module(home).__path__) for home in homes]
    for module in [f"{home}.{each.name}" for home, path in places for each in pkgutil.iter_modules(path)]:
        for name, one in _defined_in(module).items():
            if name in found:
                raise ConfigError(f"two {noun}s are called {name!r}: {found[name].__module__}, {one.__module__}")
            found[name] = one
    return dict(sorted(found.items()))


def _one(homes: tuple[str, ...], noun: str, name: object) -> Any:
    found = _named(homes, noun, name) if isinstance(name, str) else None
    if found is None:
        raise ConfigError(f"unknown {noun} {name!r}{suggest(name, _all(homes, noun))}")
    return found


@functools.cache
def _named(homes: tuple[str, ...], noun: str, name: str) -> Any:
    for home in homes:
        if name.isidentifier() and importlib.util.find_spec(f"{home}.{name}"):
            found = _defined_in(f"{home}.{name}")
            if name in found:
                return found[name]
    return _all(homes, noun).get(name)


def _defined_in(module: str) -> dict[str, Any]:
    """The classes that a module offers; one it only imports, or a shared base without a name, is none of its own."""
    classes = [value for value in vars(importlib.import_module(module)).values() if isinstance(value, type)]
    own = [value for value in classes if value.__module__ == module and hasattr(value, "Options")]
    return {vars(value)["name"]: value for value in own if "name" in vars(value)}


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


def parse_chain(value: object) -> tuple[Any, ...]:
    """The options records of a chain, from its unparsed form, for pydantic.

    Raises:
        ValueError: names the entry and its fault.
    """
    if isinstance(value, str):
        value = value.split("+")
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"a chain is a list of parts, as in [{{part: lora, rank: 8}}]; found {value!r}")
    entries = []
    for index, entry in enumerate(value):
        try:
            entries.append(parse_options(entry))
        except ConfigError as error:
            raise ValueError(str(error)) from None
        except ValidationError as error:
            name = entry["part"] if isinstance(entry, Mapping) else entry
            raise ValueError(_option_faults(str(name), index, error)) from None
    return tuple(entries)


def _option_faults(name: str, index: int, error: ValidationError) -> str:
    return "; ".join(explain(part(name).Options, detail, f"{index} ({name})") for detail in error.errors())


def parse_protocol(name: object, options: Mapping[str, Any]) -> Any:
    """The options record of a protocol, for pydantic.

    Raises:
        ValueError: no such protocol, or an option that it refuses.
    """
    return _parse_told(protocol, name, options)


def parse_observer(name: object, options: Mapping[str, Any]) -> Any:
    """The options record of an observer, for pydantic.

    Raises:
        ValueError: no such observer, or an option that it refuses.
    """
    return _parse_told(observer, name, options)


def _parse_told(find: Callable[[object], Any], name: object, options: Mapping[str, Any]) -> Any:
    try:
        record = find(name).Options
        return record.model_validate(dict(options))
    except ConfigError as error:
        raise ValueError(str(error)) from None
    except ValidationError as error:
        raise ValueError("; ".join(explain(record, detail, "options") for detail in error.errors())) from None
