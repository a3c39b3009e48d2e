"""The contract of an observer: what looks at a run while it trains, and changes nothing.

An observer is one small class in one file of `lowrank.train.observers`, found by its name. A run asks for it with
`observe: {name: {option: value}}` in its training settings. Its rows lie in `observed/<name>.json` of the run's folder;
they are part of a checkpoint, so that a resumed run has the rows of an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol, final

from torch import nn

from lowrank.registry import observer
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


class Seen(Protocol):
    """Where a run stands, as far as observers are concerned."""

    seconds: float
    observed: dict[str, list[Row]]


class Watch:
    """The observers that a run asks for.

    Args:
        asked: name -> options.
        model: with its chain attached and nothing trained.
    """

    def __init__(self, asked: Mapping[str, dict[str, Any]], model: nn.Module) -> None:
        self.model = model
        self.observers = [observer(name)(options) for name, options in asked.items()]
        for watching in self.observers:
            watching.begin(model)

    @contextlib.contextmanager
    def around(self, step: int, state: Seen) -> Iterator[None]:
        """Looks before and after what the block does; the time this takes is none of the training's."""
        self._look("before_parts", step, state)
        yield
        self._look("after_parts", step, state)

    def _look(self, moment: str, step: int, state: Seen) -> None:
        for watching in self.observers:
            began = time.perf_counter()
            state.observed.setdefault(watching.name, []).extend(getattr(watching, moment)(self.model, step))
            state.seconds -= time.perf_counter() - began
