"""The contract of a protocol: what is asked of a trained run.

A protocol is one small class in one file of `lowrank.evaluate.protocols`. It takes its options as a
strict record, names the metrics it gives, and measures one run. Each metric becomes the column
`<label>_<metric>` of `runs.csv`, where the label is the study's own.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from torch import nn

from lowrank.data.loader import TaskBatches
from lowrank.methods.chain import Chain
from lowrank.spec import EvalSpec, RunSpec
from lowrank.strict import Strict, parse

Metric = float | int | str | None


@dataclass(frozen=True)
class Subject:
    """What is looked at.

    Attributes:
        model: the trained model, with its chain attached, or merged where the evaluation asks for it.
        chain: the method.
        batches: the split that the evaluation names.
        run: what was trained.
        spec: what is asked.
        device: where the model lies.
        poll: to be called before each batch; it raises where scoring must stop.
    """

    model: nn.Module
    chain: Chain
    batches: TaskBatches
    run: RunSpec
    spec: EvalSpec
    device: torch.device
    poll: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Outcome:
    """What a protocol found.

    Attributes:
        metrics: by name; None where there is no such number for this run.
        items: what belongs to each unit, for intervals over test items.
        records: rows for tables, such as generated samples.
        cause: why there are no numbers, in a run that cannot be scored; None otherwise.
    """

    metrics: dict[str, Metric] = field(default_factory=dict)
    items: dict[str, list[float]] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    cause: str | None = None


def not_finite(subject: Subject) -> Outcome:
    """What a protocol gives where the loss is not finite."""
    return Outcome(cause=f"the loss on the {subject.spec.split} split is not finite")


class Protocol(abc.ABC):
    """Base of all protocols. Subclasses set `name`, `Options` and `metrics`, and define `measure`."""

    name: ClassVar[str]
    Options: ClassVar[type[Strict]] = Strict
    metrics: ClassVar[tuple[str, ...]]
    """Every metric that it may give."""
    steps: ClassVar[int] = 20
    """What it takes, in training steps of its run: a guess, by which the workflow starts the longest packs first."""
    spoils: ClassVar[bool] = False
    """Leaves the model other than it was, so that it comes last where several look at one model."""

    @final
    def __init__(self, options: dict[str, Any] | None = None) -> None:
        """Takes the options of an evaluation.

        Raises:
            ConfigError: an option is unknown or out of range.
        """
        self.options: Any = parse(self.Options, options or {}, f"protocol {self.name}")

    @abc.abstractmethod
    def measure(self, subject: Subject) -> Outcome:
        """Looks at one run."""
