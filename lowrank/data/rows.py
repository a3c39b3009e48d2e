"""What readers give: records, and the rows that a card makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Record = tuple[str, Mapping[str, Any]]
"""Where a record stands, for messages, and its fields."""


@dataclass(frozen=True, slots=True)
class Row:
    """One example or document."""

    text: str
    label: int | None
    split: str | None
    """Where its file's name puts it; None where the data has no splits of its own."""
    group: str | None = None
    """What it shares with the rows that stay in its split; None where each text stands alone."""
    prompt: str = ""
    """What stands in front of the text and asks for it."""
    choices: tuple[str, ...] = ()
    """Of a question, whose label is the index of the right one."""
    subject: str = ""
    """Of a question."""

    @property
    def key(self) -> str:
        """What tells it from other rows."""
        return self.prompt + self.text
