"""Scores a model on a split: mean loss, perplexity, accuracy, and every unit's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrank.console import say
from lowrank.data.loader import TaskBatches
from lowrank.measure import ran_out
from lowrank.tasks import Task, forward

LOGITS = 2**28
"""Most numbers that a model of words gives out at a time: a gibibyte in float32."""


def rows_at_a_time(task: Task, batch_size: int, tokens: int, vocabulary: int) -> int:
    """Rows of a forward pass in an evaluation: fewer than asked for where their logits would fill a GPU.

    Args:
        task: what the model gives out.
        batch_size: asked for.
        tokens: of a row, at most.
        vocabulary: numbers that the model gives out for a token.
    """
    return batch_size if task.unit == "example" else max(1, min(batch_size, LOGITS // (tokens * vocabulary)))


def perplexity(loss: float) -> float | None:
    """exp(loss); None where that overflows."""
    return math.exp(loss) if loss < 700 else None


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
    def perplexity(self) -> float | None:
        """Of the loss."""
        return perplexity(self.loss)


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
        batch_size: rows per forward pass, at most; it changes memory, never the answer beyond rounding.
        device: where the model lies.
        rows: only the first so many; None is all.
        poll: called before each batch; it raises where scoring must stop.
    """
    (found,) = scores(model, task, batches, batch_size, device, rows=rows, poll=poll)
    return found


@torch.no_grad()
def scores(
    model: nn.Module,
    task: Task,
    batches: TaskBatches,
    batch_size: int,
    device: torch.device,
    *,
    rows: int | None = None,
    poll: Callable[[], None] = lambda: None,
    members: int = 1,
) -> list[Score]:
    """The same for each member of a stack: every member sees every row. Args as for `score`, and

    Args:
        members: K; the model takes the rows of K members, one member after another.
    """
    order = batches.by_length()
    order = order if rows is None else order[order < rows]
    losses, correct, predicted, labels = [], [], [], [torch.empty(0, dtype=torch.int64)]
    units: list[int] = []
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", 1)
    size, done = max(1, rows_at_a_time(task, batch_size, batches.spec.max_length, vocabulary) // members), 0
    while done < len(order):
        poll()
        chunk = order[done : done + size]
        (batch,) = batches.micro_batches(chunk, len(chunk))
        moved = {key: tensor.to(device).repeat(members, *(1,) * (tensor.ndim - 1)) for key, tensor in batch.items()}
        try:
            logits = forward(model, moved)
            batch_losses, batch_correct = task.losses(logits, moved)
        except Exception as error:
            if not ran_out(error) or len(chunk) == 1:
                raise
            size = len(chunk) // 2
            say(f"out of memory with {len(chunk)} rows at a time; scoring goes on with {size}")
            continue
        done += len(chunk)
        if task.unit == "example":
            predicted.append(logits.argmax(-1).view(members, -1).cpu())
            labels.append(batch["labels"])
        units += [task.units({key: tensor[i : i + 1] for key, tensor in batch.items()}) for i in range(len(chunk))]
        losses.append(batch_losses.view(members, -1).cpu())
        correct.append(batch_correct.view(members, -1).cpu())
    in_row_order = torch.argsort(torch.repeat_interleave(order, torch.tensor(units)), stable=True)
    all_losses, all_correct = torch.cat(losses, 1)[:, in_row_order], torch.cat(correct, 1)[:, in_row_order]
    all_predicted = torch.cat(predicted, 1) if predicted else torch.empty(members, 0, dtype=torch.int64)
    return [
        Score(
            loss=all_losses[member].double().mean().item(),
            accuracy=all_correct[member].double().mean().item(),
            units=all_losses.shape[1],
            losses=all_losses[member],
            correct=all_correct[member],
            predicted=all_predicted[member],
            labels=torch.cat(labels),
        )
        for member in range(members)
    ]
