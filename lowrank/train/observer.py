"""The contract of an observer: what looks at a run while it trains, and changes nothing.

An observer is one small class in one file of `lowrank.train.observers`, found by its name. A run asks for it with
`observe: {name: {option: value}}` in its training settings. Its rows lie in `observed/<name>.json` of the run's folder;
they are part of a checkpoint, so that a resumed run has the rows of an uninterrupted one.
"""

from __future__ import annotations

from typing import Any, ClassVar, final

from torch import nn

from lowrank.strict import Strict, parse

Row = dict[str, Any]
"""What was seen at one place: `step` (int, counted from 1) and JSON values."""


class Observer:
    """Base of all observers. Subclasses set `name` and `Options`, and define the hooks they need.

    An observer keeps no state that training changes: what it returns is all that is remembered.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Strict]] = Strict

    @final
    def __init__(self, options: dict[str, Any] | None = None) -> None:
        """Takes the options of a run.

        Raises:
            ConfigError: an option is unknown or out of range.
        """
        self.options: Any = parse(self.Options, options or {}, f"observer {self.name}")

    def begin(self, model: nn.Module) -> None:
        """Sees the model with its chain attached and nothing trained; of a resumed run too."""

    def before_parts(self, model: nn.Module, step: int) -> list[Row]:
        """After the optimizer's step `step`, before the parts act on the model (merge, prune)."""
        return []

    def after_parts(self, model: nn.Module, step: int) -> list[Row]:
        """When the parts have acted."""
        return []
