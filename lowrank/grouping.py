"""Which runs may share a pack: those that differ in nothing but the packed axes."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

from lowrank.files import canonical_json


def alike(
    runs: Mapping[str, Mapping[str, Any]], axes: set[str], only: Mapping[str, Collection[str]]
) -> dict[str, list[str]]:
    """Groups runs by everything but the packed axes; the keys say what the members of a group share.

    Args:
        runs: id -> entry of the plan.
        axes: short or dotted names, as in a sweep; `chain` for all of the method.
        only: label of an evaluation -> the runs it is limited to; runs that are scored otherwise are not alike.
    """
    groups: dict[str, list[str]] = {}
    for run, entry in runs.items():
        shared: dict[str, Any] = {"spec": _without(entry["spec"], axes), "pins": entry["pins"]}
        shared["keep"] = entry["keep_weights"]
        if entry["extended"]:  # trained by a target of its own
            shared["extended"] = True
        asked = [label for label, limited in only.items() if run in limited]
        groups.setdefault(canonical_json(shared | ({"only": asked} if asked else {})), []).append(run)
    return groups


def _without(spec: dict[str, Any], axes: set[str]) -> dict[str, Any]:
    """A dumped spec with the packed axes taken out, wherever they stand."""

    def strip(value: Any, owner: str) -> Any:
        if isinstance(value, dict):
            owner = value.get("part", owner)
            return {k: strip(v, k) for k, v in value.items() if k not in axes and f"{owner}.{k}" not in axes}
        if isinstance(value, list):
            return [strip(item, owner) for item in value]
        return value

    stripped: dict[str, Any] = strip(spec, "")
    return stripped


def digest(parts: list[str]) -> str:
    """One digest of several, in their order."""
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]


def joint(digests: list[str]) -> str:
    """The digest that all members of a pack have, or one of theirs."""
    different = sorted(set(digests))
    return different[0] if len(different) == 1 else digest(different)
