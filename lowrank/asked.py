"""Questions that shapes alone decide, each asked once: the file keeps what the committed studies ask.

Whether a chain works on a model, whether its runs can be stacked, what they hold and compute: an answer needs the
model's class and up to two seconds, a plan hundreds of them. `python -m lowrank.forecasts` writes the file; a question
that is not in it is answered when it is asked.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from lowrank.cards import model_card
from lowrank.files import REPOSITORY, canonical_json, read_json
from lowrank.spec import RunSpec

FILE = REPOSITORY / "resources" / "forecasts.json"

ASKED: set[str] = set()
"""Every question of this process."""


@functools.cache
def answers() -> dict[str, Any]:
    """Question, by its hash, to answer: those of the file, then those that this process found."""
    known: dict[str, Any] = read_json(FILE) if FILE.is_file() else {}
    return known


def key(question: Mapping[str, Any]) -> str:
    """By what the file knows a question."""
    return hashlib.sha256(canonical_json(question).encode()).hexdigest()[:16]


def answer(question: Mapping[str, Any], find: Callable[[], Any]) -> Any:
    """The answer to a question, looked up or found now.

    Args:
        question: all that decides the answer, as plain JSON values.
        find: gives the answer as plain JSON values; what it raises is no answer.
    """
    asked, known = key(question), answers()
    ASKED.add(asked)
    if asked not in known:
        known[asked] = find()
    return known[asked]


def shape(spec: RunSpec, labels: int) -> dict[str, Any]:
    """What decides the shapes of a run's model: how it is cut, its card's configuration, its task and its labels."""
    plain = spec.model.model_dump(mode="json", exclude_defaults=True)
    return {"task": spec.task, "model": plain, "config": model_card(spec.model.card).config, "labels": labels}
