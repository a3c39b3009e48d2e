"""YAML as it is read here: safely, with libyaml, refusing a key that stands twice; a record once."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml

from lowrank.errors import ConfigError
from lowrank.strict import Strict, parse


def read_yaml(path: Path) -> Any:
    """Loads a YAML file, safely.

    Raises:
        ConfigError: no such file, not YAML, or one key twice; names line and column.
    """
    try:
        loader = yaml.CSafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        _refuse_repeats(node, set())
        return None if node is None else loader.construct_document(node)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


@functools.cache
def record_once(record: type[Strict], path: Path, written_ns: int, place: str) -> Any:
    """The record that a file holds, read once for each time that it was written.

    Args:
        record: its class.
        path: the file.
        written_ns: when it was written.
        place: what messages call it.

    Raises:
        ConfigError: from `read_yaml`, or a fault in the record.
    """
    return parse(record, read_yaml(path), place)


def _refuse_repeats(node: yaml.Node | None, seen: set[int]) -> None:
    """Refuses a mapping that says one key twice, of which YAML would silently keep the last."""
    if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
        return
    seen.add(id(node))  # an anchor's node stands wherever it is named
    keys: set[str] = set()
    for entry in node.value:
        for child in entry if isinstance(entry, tuple) else (entry,):
            _refuse_repeats(child, seen)
        if isinstance(entry, tuple) and isinstance(key := entry[0], yaml.ScalarNode):
            if key.value in keys:
                raise yaml.composer.ComposerError(None, None, f"{key.value!r} stands here twice", key.start_mark)
            keys.add(key.value)
