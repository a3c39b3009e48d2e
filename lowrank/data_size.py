"""How much data there is, as published."""

from __future__ import annotations

from typing import Literal

from lowrank.strict import PositiveFloat, PositiveInt, Strict


class DataSize(Strict):
    """How much data a card's files hold, as published; what a plan counts on, and no part of the card's identity."""

    rows: dict[Literal["train", "validation", "test"], PositiveInt] = {}
    """About how many rows each split of the files has."""
    tokens_per_row: PositiveInt | None = None
    """About how many tokens a row of a text gives."""
    files_gb: PositiveFloat | None = None
    """About how large the files are, 10^9 bytes; None is less than 0.1."""
