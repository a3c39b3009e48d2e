"""Rows that are asked for something: instructions with responses, questions with choices."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from lowrank.cards import DataCard
from lowrank.data.rows import Row
from lowrank.errors import ConfigError, IntegrityError
from lowrank.strict import suggest
from lowrank.templates import Template

CHOICES = 4


def instructions(card: DataCard, place: str, record: Mapping[str, Any]) -> list[Row]:
    """The rows that the templates of a card make of a record.

    `use: first` takes the first template whose prompt has all its fields, whether or not there is a response
    to it; `use: each` every template that has them, the response's too.

    Raises:
        ConfigError: a template names a field that the data has not.
    """
    for template in card.templates:
        missing = [field for field in template.fields if field not in record]
        if missing:
            raise ConfigError(f"data card {card.name!r}: template names {missing[0]!r}{suggest(missing[0], record)}")
    if card.use == "each":
        chosen = [template for template in card.templates if _says(template.fields, record)]
    else:
        chosen = [template for template in card.templates if _says(_prompt_fields(template), record)][:1]
    return [
        Row(
            text=template.response.format_map(record), label=None, split=None, prompt=template.prompt.format_map(record)
        )
        for template in chosen
    ]


def questions(card: DataCard, place: str, record: Mapping[str, Any]) -> list[Row]:
    """The question of a record, or the one that a card's labels and template make of it.

    A record that is a question has `question`, `choices` (four texts), `answer` (0 to 3) and `subject`. One that
    is made has its label and three others as choices, in an order that its text decides.

    Raises:
        IntegrityError: a record that is not of that form.
    """
    if card.labels:
        return [_made(card, place, record)]
    choices, answer = record.get("choices"), record.get("answer")
    if (
        not isinstance(choices, list)
        or len(choices) != CHOICES
        or not isinstance(answer, int)
        or answer not in range(CHOICES)
    ):
        raise IntegrityError(
            f"data card {card.name!r}: {place}: choices {choices!r}, answer {answer!r}; allowed: 4, 0 to 3"
        )
    subject = str(record["subject"])
    return [Row(str(record["question"]), answer, None, choices=tuple(map(str, choices)), subject=subject)]


def _made(card: DataCard, place: str, record: Mapping[str, Any]) -> Row:
    label = record.get(card.label)
    if label not in card.labels:
        raise IntegrityError(
            f"data card {card.name!r}: {place}: {card.label} is {label!r}{suggest(label, card.labels)}"
        )
    text = card.templates[0].prompt.format_map(record)
    others = sorted((other for other in card.labels if other != label), key=lambda other: _draw(text, other))
    choices = sorted([label, *others[: CHOICES - 1]], key=lambda choice: _draw(text, f"place {choice}"))
    return Row(text, choices.index(label), None, choices=tuple(choices), subject=card.label)


def _says(fields: tuple[str, ...], record: Mapping[str, Any]) -> bool:
    return all(str(record[field] or "").strip() for field in fields)


def _prompt_fields(template: Template) -> tuple[str, ...]:
    return template.model_copy(update={"response": ""}).fields


def _draw(text: str, word: str) -> str:
    return hashlib.sha256(f"{text}:{word}".encode()).hexdigest()
