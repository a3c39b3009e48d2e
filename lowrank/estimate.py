"""What a run will take of a GPU: hours, memory, operations, disk; before anything is submitted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from lowrank.cards import DataCard, data_card
from lowrank.errors import ConfigError
from lowrank.forecasts import eval_rows, forecast_of
from lowrank.gpus import GIB, GPUS, USABLE, GpuFacts, speed
from lowrank.measure.forecast import Forecast
from lowrank.measure.tally import Work, flops, seconds
from lowrank.spec import DataSpec, EvalSpec, RunSpec
from lowrank.train.checkpoint import KEPT

CODED = "nf4"
"""The part that stores a base in four bits a weight."""

HISTORY_BYTES = 500
"""Of one step in a run's files, page included: what laptop runs take, rounded up."""


@dataclass(frozen=True)
class Estimate:
    """One run.

    Attributes:
        forecast: of what a step holds and computes.
        steps: optimizer steps.
        training_seconds: on one GPU.
        scoring_seconds: of validation and scores, on one GPU.
        flops: of both.
        results_bytes: what stays of it: weights where they are kept, history, page.
        work_bytes: what lies on the disk while it runs: checkpoints.
    """

    forecast: Forecast
    steps: int
    training_seconds: float
    scoring_seconds: float
    flops: int
    results_bytes: int
    work_bytes: int

    @property
    def seconds(self) -> float:
        """Of everything, on one GPU."""
        return self.training_seconds + self.scoring_seconds


def split_rows(spec: DataSpec, card: DataCard) -> dict[str, int]:
    """About how many rows train, validation and test will have; a split of which neither card nor spec says it lacks.

    Of a text whose documents are laid end to end, rows of `max_length` tokens.
    """
    limits = {"train": spec.train_rows, "validation": spec.validation_rows, "test": spec.test_rows}
    if not card.size.rows:
        return {name: rows for name, rows in limits.items() if rows is not None}
    found: dict[str, int] = {str(name): rows for name, rows in card.size.rows.items()}
    train = found.get("train", 0)
    for name, fraction in (("test", spec.test_fraction), ("validation", spec.validation_fraction)):
        if name not in found:
            found[name] = round(fraction * train)
            train -= found[name]
    found["train"] = train
    found = {name: min(rows, limits[name] or rows) for name, rows in found.items()}
    if card.task == "text" and spec.concatenate and card.size.tokens_per_row is not None:
        found = {name: rows * card.size.tokens_per_row // spec.max_length for name, rows in found.items()}
    return found


def steps_of(spec: RunSpec) -> int:
    """Optimizer steps of a run, by what its data card says of the rows; 0 where it says nothing."""
    if spec.train.steps is not None:
        return spec.train.steps
    rows = split_rows(spec.data, data_card(spec.data.card)).get("train", 0)
    return (spec.train.epochs or 0) * math.ceil(rows / spec.train.batch_size)


def _rows(spec: DataSpec, split: str) -> int:
    found = split_rows(spec, data_card(spec.card))
    if split not in found:
        raise ConfigError(
            f"data card {spec.card!r}: size.rows says nothing of {split}, so what a run takes is not known; state it"
        )
    return found[split]


def estimate(spec: RunSpec, evaluations: Iterable[EvalSpec], gpu: GpuFacts, keep_weights: bool) -> Estimate:
    """What a run takes on a GPU.

    Each evaluation counts as one pass over its rows, each row as long as its data allow.

    Args:
        spec: the run.
        evaluations: what it is scored by.
        gpu: from `lowrank.gpus`.
        keep_weights: whether they stay.

    Raises:
        ConfigError: a data card without rows, or a precision that the GPU does not have.
    """
    found, steps = forecast_of(spec), steps_of(spec)
    train = spec.train
    passes = math.ceil(train.batch_size / (train.micro_batch_size or train.batch_size)) * steps
    epoch = math.ceil(_rows(spec.data, "train") / train.batch_size)
    every = epoch if train.eval_every == "epoch" else train.eval_every
    scored: float = max(1, steps // every) * _rows(spec.data, "validation")
    for evaluation in evaluations:
        data = evaluation.data or spec.data
        of_split = _rows(data, evaluation.split)
        scored += min(evaluation.rows or of_split, of_split) * data.max_length / spec.data.max_length
    speeds = speed(gpu, train.precision)

    batches = scored / eval_rows(spec)
    trained = passes * flops(found.micro_batch) + steps * flops(found.update)

    def took(work: Work) -> float:
        return seconds(work, *speeds)

    return Estimate(
        forecast=found,
        steps=steps,
        training_seconds=passes * took(found.micro_batch) + steps * took(found.update),
        scoring_seconds=batches * took(found.eval_batch),
        flops=round(trained + batches * flops(found.eval_batch)),
        results_bytes=found.changed_bytes * keep_weights + HISTORY_BYTES * steps,
        work_bytes=KEPT * (found.changed_bytes + found.optimizer_bytes),
    )


def fits(found: Forecast, gpu: GpuFacts) -> bool:
    """Whether the tensors of a run find room on a GPU."""
    return found.peak_bytes <= USABLE * gpu.memory_gb * GIB


def refuse_what_does_not_fit(spec: RunSpec, gpu: GpuFacts) -> None:
    """Refuses a run that a GPU cannot hold, with what would fit.

    Raises:
        ConfigError: says what the run needs, what there is, and each single change after which it fits.
    """
    found = forecast_of(spec)
    if fits(found, gpu):
        return
    usable = f"{USABLE * gpu.memory_gb * GIB / 1e9:.0f} GB of a {gpu.name} are for tensors"
    larger = [other.name for other in GPUS if fits(found, other)]
    would = [*_changes_that_fit(spec, gpu), *([f"a GPU such as {' or '.join(larger)}"] if larger else [])]
    chain = "+".join(options.part for options in spec.chain)
    raise ConfigError(
        f"{chain} on {spec.model.card} needs {found.peak_bytes / 1e9:.0f} GB "
        f"({found.parameter_bytes / 1e9:.1f} weights, {found.gradient_bytes / 1e9:.1f} gradients, "
        f"{found.optimizer_bytes / 1e9:.1f} optimizer, {found.kept_bytes / 1e9:.1f} copies, "
        f"{found.activation_bytes / 1e9:.1f} activations), but {usable}; "
        f"would fit: {'; '.join(would) or 'no single change'}"
    )


def _changes_that_fit(spec: RunSpec, gpu: GpuFacts) -> Iterator[str]:
    """Single changes of a run after which it fits, in words."""
    plain = spec.dump()

    def enough(**sections: Any) -> bool:
        try:
            return fits(forecast_of(RunSpec.model_validate({**plain, **sections})), gpu)
        except (ConfigError, ValidationError):  # the chain does not take it
            return False

    rows = spec.train.micro_batch_size or spec.train.batch_size
    while rows % 2 == 0:
        rows //= 2
        if enough(train={**plain["train"], "micro_batch_size": rows}):
            yield f"train.micro_batch_size {rows}, accumulated to the same batch"
            break
    if enough(model={**plain["model"], "gradient_checkpointing": True}):
        yield "model.gradient_checkpointing true"
    if enough(chain=[CODED, *plain["chain"]]):
        yield f"{CODED} in front of the chain"
