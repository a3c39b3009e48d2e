"""How a row of data becomes a prompt and what answers it."""

from __future__ import annotations

from string import Formatter

from pydantic import Field

from lowrank.strict import Strict


class Template(Strict):
    """A prompt and its answer, with the row's fields in braces."""

    prompt: str = Field(min_length=1)
    response: str = ""
    """Of instructions."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that the prompt and the response name."""
        return tuple(name for _, name, _, _ in Formatter().parse(self.prompt + self.response) if name)
