"""Scores a model on a split: mean loss, perplexity, accuracy, and every unit's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrank.data.loader import TaskBatches
from lowrank.tasks import Task, forward


@dataclass(frozen=True)
class Score:
    """What a split says of a model.

    Attributes:
        loss: sum of unit losses / number of units, in nats.
        accuracy: share of units predicted right.
        units: how many examples or predicted tokens.
        losses: (units,) float32, in row order.
        correct: (units,) bool, in row order.
        predicted: (units,) int64, the predicted classes where units are examples, else empty; in no order.
        labels: (units,) int64, the classes that belong to `predicted`.
    """

    loss: float
    accuracy: float
    units: int
    losses: Tensor
    correct: Tensor
    predicted: Tensor
    labels: Tensor

    @property
    def f1(self) -> float | None:
        """Macro F1: the mean over classes c of 2 TP_c / (2 TP_c + FP_c + FN_c); None where units are no examples.

        Classes that are neither labels nor predicted are left out, as in scikit-learn.
        """
        if not len(self.labels):
            return None
        classes = int(max(self.predicted.max(), self.labels.max())) + 1
        hits = torch.bincount(self.labels[self.predicted == self.labels], minlength=classes)
        seen = torch.bincount(self.labels, minlength=classes) + torch.bincount(self.predicted, minlength=classes)
        return (2 * hits[seen > 0] / seen[seen > 0]).mean(dtype=torch.float64).item()

    @property
    def perplexity(self) -> float:
        """exp(loss); inf where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


@torch.no_grad()
def score(
    model: nn.Module,
    task: Task,
    batches: TaskBatches,
    batch_size: int,
    device: torch.device,
    *,
    rows: int | None = None,
    poll: Callable[[], None] = lambda: None,
) -> Score:
    """Scores every row of a split once.

    Rows are run in order of length, so that little padding is computed, and reported in row order.

    Args:
        model: in evaluation mode.
        task: loss and units.
        batches: the split.
        batch_size: rows per forward pass; it changes memory, never the answer beyond rounding.
        device: where the model lies.
        rows: only the first so many; None is all.
        poll: called before each batch; it raises where scoring must stop.
    """
    order = batches.by_length()
    order = order if rows is None else order[order < rows]
    losses: list[Tensor] = [torch.empty(0)] * len(order)
    correct: list[Tensor] = [torch.empty(0)] * len(order)
    predicted, labels = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
    for chunk in order.split(batch_size):
        poll()
        (batch,) = batches.micro_batches(chunk, len(chunk))
        moved = {key: tensor.to(device) for key, tensor in batch.items()}
        logits = forward(model, moved)
        batch_losses, batch_correct = task.losses(logits, moved)
        if task.unit == "example":
            predicted.append(logits.argmax(-1).cpu())
            labels.append(batch["labels"])
        units = [task.units({key: tensor[i : i + 1] for key, tensor in batch.items()}) for i in range(len(chunk))]
        for row, row_losses, row_correct in zip(
            chunk.tolist(), batch_losses.cpu().split(units), batch_correct.cpu().split(units), strict=True
        ):
            losses[row], correct[row] = row_losses, row_correct
    all_losses, all_correct = torch.cat(losses), torch.cat(correct)
    return Score(
        loss=all_losses.double().mean().item(),
        accuracy=all_correct.double().mean().item(),
        units=len(all_losses),
        losses=all_losses,
        correct=all_correct,
        predicted=torch.cat(predicted),
        labels=torch.cat(labels),
    )
