"""Learning-rate schedules: step -> factor of lr, pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

from lowrank.spec import TrainSpec


def length_of(train: TrainSpec, rows: int) -> tuple[int, int, int]:
    """Steps of an epoch, of the whole run, and between two evaluations."""
    per_epoch = math.ceil(rows / train.batch_size)
    total = train.steps if train.steps is not None else (train.epochs or 0) * per_epoch
    return per_epoch, total, per_epoch if train.eval_every == "epoch" else train.eval_every


def schedule(train: TrainSpec, total_steps: int) -> Callable[[int], float]:
    """The factor of lr at optimizer step 0, 1, ..., total_steps - 1.

    With w warm-up steps the factor rises as (step + 1) / w, then follows the schedule:

    - constant: 1
    - linear:   m + (1 - m) (1 - p)
    - cosine:   m + (1 - m) (1 + cos(pi p)) / 2
    - jagged_cosine: cosine times a warm-up that starts again every `cycle_steps` (ReLoRA)

    with p the share of the steps after warm-up that is done, and m = min_lr_fraction.

    Source: Lialin et al. 2023, "ReLoRA", section 3 (jagged schedule).
    """
    warmup, floor = train.warmup_steps, train.min_lr_fraction

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, total_steps - warmup)
        if train.schedule == "constant":
            return 1.0
        if train.schedule == "linear":
            return floor + (1 - floor) * (1 - progress)
        cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        if train.schedule == "jagged_cosine" and train.cycle_steps is not None and step >= train.cycle_steps:
            return cosine * min(1.0, (step % train.cycle_steps + 1) / max(1, warmup))
        return cosine

    return factor
