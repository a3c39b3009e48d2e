"""The training loop. It talks to a chain and never asks which method it runs."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.console import progress
from lowrank.data.loader import TaskBatches
from lowrank.evaluate.score import score
from lowrank.methods.chain import Chain
from lowrank.spec import TrainSpec
from lowrank.tasks import Task, forward
from lowrank.train.checkpoint import rng_state, set_rng_state
from lowrank.train.schedules import schedule

FINITE_CHECK_EVERY = 20
"""Steps between two looks at the loss: a look waits for the device."""

EVAL_BATCH_SIZE = 128


@dataclass
class State:
    """Where a run stands; everything that a checkpoint holds beside model, optimizer and parts."""

    step: int = 0
    seconds: float = 0.0
    """Training only: evaluation and checkpoints are not counted."""
    tokens: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    """One row per step: step, epoch, lr, train_loss, and val_loss, val_accuracy where they were taken."""
    best_val_loss: float | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    diverged_at: int | None = None


class Loop:
    """One run.

    Args:
        model: with `chain` attached.
        chain: the method.
        task: loss and units.
        train: every setting of the loop.
        batches: the training split.
        validation: the validation split.
        seed: decides the order of the data and every draw in training.
        device: where the model lies.
    """

    def __init__(
        self,
        model: nn.Module,
        chain: Chain,
        task: Task,
        train: TrainSpec,
        batches: TaskBatches,
        validation: TaskBatches,
        seed: int,
        device: torch.device,
    ) -> None:
        self.model, self.chain, self.task, self.train = model, chain, task, train
        self.batches, self.validation, self.seed, self.device = batches, validation, seed, device
        self.steps_per_epoch = math.ceil(batches.rows / train.batch_size)
        self.total_steps = train.steps if train.steps is not None else (train.epochs or 0) * self.steps_per_epoch
        self.eval_every = self.steps_per_epoch if train.eval_every == "epoch" else train.eval_every
        self.state = State()
        self.trainable = list(chain.trainable().values())
        self.optimizer = chain.optimizer(train)
        self.factor = chain.schedule(train, self.total_steps) or schedule(train, self.total_steps)
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        torch.manual_seed(seed)

    def run(self, after_step: Callable[[Loop], None], label: str) -> State:
        """Trains from where `state` stands to the end, or to divergence.

        Args:
            after_step: called after each step; it saves, and raises where the run must stop.
            label: names the run in the progress bar.
        """
        if self.total_steps == 0:
            self.state.history.append({"step": 0, "epoch": 0.0})
            self.evaluate()
            return self.state
        self.model.train()
        pending: list[Tensor] = []  # losses still on the device, in step order
        first = self.state.step
        for step in progress(range(first, self.total_steps), total=self.total_steps, start=first, label=label):
            began = time.perf_counter()
            pending.append(self.one_step(step))
            self.state.step = step + 1
            epoch = self.state.step / self.steps_per_epoch
            lr = self.train.lr * self.factor(step)
            self.state.history.append({"step": self.state.step, "epoch": epoch, "lr": lr})
            evaluates = self.state.step == self.total_steps or self.state.step % self.eval_every == 0
            if evaluates or self.state.step % FINITE_CHECK_EVERY == 0:
                self.settle(pending)
            self.state.seconds += time.perf_counter() - began
            if evaluates and not self.diverged:
                self.evaluate()
            if self.diverged:
                break
            after_step(self)
        self.settle(pending)
        return self.state

    def one_step(self, step: int) -> Tensor:
        """One optimizer step over the whole batch, in micro-batches; returns the mean loss (scalar tensor)."""
        train = self.train
        micro_batches = list(self.micro_batches(step))
        units = sum(self.task.units(batch) for batch in micro_batches)
        self.state.tokens += sum(batch["attention_mask"].numel() for batch in micro_batches)
        micro_batches = [{key: tensor.to(self.device) for key, tensor in batch.items()} for batch in micro_batches]
        self.chain.before_step(micro_batches, step)
        total = torch.zeros((), device=self.device)
        for batch in micro_batches:
            self.chain.before_forward(batch, step)
            with self.autocast():
                losses, _ = self.task.losses(forward(self.model, batch), batch)
            loss = losses.sum() / max(1, units)
            loss.backward()
            total += loss.detach()
        penalty = self.chain.penalty()
        if penalty is not None:
            penalty.backward()
        if train.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.trainable, train.clip_norm)
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * self.factor(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.chain.after_step(self.optimizer, step + 1)
        return total

    def micro_batches(self, step: int) -> Iterator[dict[str, Tensor]]:
        """The batch of a step, a pure function of seed and step, cut into micro-batches."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = self.batches.order(self.seed, epoch)
        rows = order[index * self.train.batch_size : (index + 1) * self.train.batch_size]
        yield from self.batches.micro_batches(rows, self.train.micro_batch_size or self.train.batch_size)

    @property
    def diverged(self) -> bool:
        """Whether a loss was not finite."""
        return self.state.diverged_at is not None

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bf16 autocast where the run asks for it."""
        if self.train.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def settle(self, pending: list[Tensor]) -> None:
        """Writes the losses of the last steps into the history and notices divergence."""
        rows = self.state.history[len(self.state.history) - len(pending) :]
        for row, loss in zip(rows, pending, strict=True):
            value = loss.item()
            row["train_loss"] = value if math.isfinite(value) else None
            if not math.isfinite(value) and self.state.diverged_at is None:
                self.state.diverged_at = row["step"]
        pending.clear()

    def evaluate(self) -> None:
        """Validation loss and accuracy into the history; keeps the best weights where the run is judged by them."""
        with self.chain.eval_mode() as model, self.autocast():
            result = score(model, self.task, self.validation, EVAL_BATCH_SIZE, self.device)
        row, loss = self.state.history[-1], result.loss
        if not math.isfinite(loss):
            self.state.diverged_at = self.state.step
            return
        row["val_loss"], row["val_accuracy"] = loss, result.accuracy
        if self.state.best_val_loss is None or loss < self.state.best_val_loss:
            self.state.best_val_loss = loss
            if self.train.select == "best":
                self.state.best_weights = {k: v.detach().clone() for k, v in self.chain.changed().items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the run goes on."""
        return {
            "loop": vars(self.state),
            "model": self.chain.changed(),
            "optimizer": self.optimizer.state_dict(),
            "parts": self.chain.state_dict(),
            "rng": rng_state(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave, bit for bit."""
        self.chain.load_changed(saved["model"], "checkpoint")
        self.chain.load_state_dict(saved["parts"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.state = State(**saved["loop"])
        set_rng_state(saved["rng"])
