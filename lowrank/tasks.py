"""What a model is asked to do: its loss, what the loss is divided by, and its metrics.

A loss is a sum over units (examples, or tokens) and is divided once, by the number of units of the
whole batch, so that accumulation over micro-batches equals one large batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from torch import Tensor, nn
from torch.nn import functional

from lowrank.errors import ConfigError
from lowrank.head_loss import head_loss, plain_head
from lowrank.strict import suggest

IGNORED = -100
"""The label of a position where nothing is predicted."""

Batch = Mapping[str, Tensor]


class Task(Protocol):
    """The loop's view of a task; a subclass brings all but `loss`."""

    unit: str

    def units(self, batch: Batch) -> int:
        """How many units (examples, or predicted tokens) the loss of this batch sums over."""

    def losses(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss (units,) float32 in nats and correctness (units,) bool of each unit."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum of the losses, to be differentiated: a scalar."""
        return self.losses(forward(model, batch), batch)[0].sum()


class Classification(Task):
    """One label per example: mean cross-entropy in nats, accuracy."""

    unit = "example"

    def units(self, batch: Batch) -> int:
        """Examples in the batch."""
        return len(batch["labels"])

    def losses(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """logits (B, classes), labels (B,) -> loss (B,), correct (B,)."""
        labels = batch["labels"]
        return functional.cross_entropy(logits.float(), labels, reduction="none"), logits.argmax(-1) == labels


class CausalLM(Task):
    """The next token: mean negative log-likelihood per token in nats, padding left out."""

    unit = "token"

    def units(self, batch: Batch) -> int:
        """Predicted tokens in the batch; the first of each row has nothing before it."""
        return int((batch["labels"][:, 1:] != IGNORED).sum())

    def losses(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """logits (B, T, vocabulary), labels (B, T) -> loss (predicted tokens,), correct (predicted tokens,)."""
        labels = batch["labels"][:, 1:]
        wanted = labels != IGNORED
        predicted, labels = logits[:, :-1][wanted], labels[wanted]
        return functional.cross_entropy(predicted.float(), labels, reduction="none"), predicted.argmax(-1) == labels

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum of the losses; where the model allows it, from its hidden states, without all logits at once."""
        head = plain_head(model)
        if head is None:
            return super().loss(model, batch)
        labels = batch["labels"][:, 1:]
        wanted = labels != IGNORED
        trunk = cast("Callable[..., Any]", model.base_model)
        hidden: Tensor = trunk(**_inputs(batch)).last_hidden_state
        return head_loss(hidden[:, :-1][wanted], head.weight, labels[wanted])


class MaskedLM(Task):
    """The tokens that were hidden: mean negative log-likelihood per predicted token in nats."""

    unit = "token"

    def units(self, batch: Batch) -> int:
        """Predicted tokens in the batch."""
        return int((batch["labels"] != IGNORED).sum())

    def losses(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """logits (B, T, vocabulary), labels (B, T) -> loss (predicted tokens,), correct (predicted tokens,)."""
        wanted = batch["labels"] != IGNORED
        predicted, labels = logits[wanted], batch["labels"][wanted]
        return functional.cross_entropy(predicted.float(), labels, reduction="none"), predicted.argmax(-1) == labels


TASKS: dict[str, Task] = {"classification": Classification(), "causal_lm": CausalLM(), "masked_lm": MaskedLM()}


def task(name: str) -> Task:
    """The task of that name.

    Raises:
        ConfigError: no such task.
    """
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}{suggest(name, TASKS)}")
    return TASKS[name]


def positions(batch: Batch) -> int:
    """What a forward pass works through: tokens, padding included, or images."""
    return batch["attention_mask"].numel() if "attention_mask" in batch else len(batch["labels"])


def forward(model: nn.Module, batch: Batch) -> Tensor:
    """The logits of a transformers model; labels stay with the task."""
    logits: Tensor = model(**_inputs(batch)).logits
    return logits


def _inputs(batch: Batch) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}
