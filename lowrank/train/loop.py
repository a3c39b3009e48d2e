"""The training loop. It talks to a chain and never asks which method it runs."""

from __future__ import annotations

import contextlib
import functools
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
from lowrank.signals import StopFlag
from lowrank.spec import TrainSpec
from lowrank.tasks import Task, positions
from lowrank.train.checkpoint import load_optimizer, rng_state, set_rng_state
from lowrank.train.checks import check_batches
from lowrank.train.observer import Row, Watch
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
    """One row per step: step, epoch, lr, train_loss; val_loss and val_accuracy where they were taken."""
    best_val_loss: float | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    diverged_at: int | None = None
    observed: dict[str, list[Row]] = field(default_factory=dict)
    """Observer -> what it has seen so far."""

    @property
    def cause(self) -> str | None:
        """Why the run ended early, or None."""
        return None if self.diverged_at is None else f"the loss was not finite at step {self.diverged_at}"


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

    Raises:
        ConfigError: the chain cannot share out the batches.
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
        self.pending: list[Tensor] = []  # losses still on the device, of the last steps of the history
        check_batches(chain, train, None if batches.whole_batches else batches.rows)
        self.trainable = list(chain.trainable().values())
        self.optimizer = chain.optimizer(train)
        self.factor = chain.schedule(train, self.total_steps) or schedule(train, self.total_steps)
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.watch = Watch(train.observe, model)
        torch.manual_seed(seed)

    def run(self, keep: Callable[[Loop], None], label: str, stop: StopFlag | None = None) -> State:
        """Trains from where `state` stands to the end, or to divergence.

        Args:
            keep: called after each step, to save now and then.
            label: names the run in the progress bar and in messages.
            stop: polled after each step and inside evaluations; None where no signal is listened for.

        Raises:
            Preempted: a signal arrived; `state_dict` says where the run stands.
        """
        stop = StopFlag() if stop is None else stop
        if self.total_steps == 0:
            self.state.history.append({"step": 0, "epoch": 0.0})
        self.evaluate_if_due(stop, label)  # an evaluation that was cut short, or the untouched base
        self.model.train()
        first = self.state.step
        for step in progress(range(first, self.total_steps), total=self.total_steps, start=first, label=label):
            if self.diverged:
                break
            self.take_step(step)
            self.evaluate_if_due(stop, label)
            keep(self)
            self.poll(stop, label)
        self.settle()
        return self.state

    def poll(self, stop: StopFlag, label: str) -> None:
        """Raises `Preempted` if a signal has arrived."""
        stop.check(f"{label} is saved at step {self.state.step} of {self.total_steps}")

    def take_step(self, step: int) -> None:
        """One optimizer step and its row in the history."""
        began = time.perf_counter()
        self.pending.append(self.one_step(step))
        self.state.step = step + 1
        row = {"step": step + 1, "epoch": (step + 1) / self.steps_per_epoch, "lr": self.train.lr * self.factor(step)}
        self.state.history.append(row)
        if self.evaluation_is_due or self.state.step % FINITE_CHECK_EVERY == 0:
            self.settle()
        self.state.seconds += time.perf_counter() - began

    def one_step(self, step: int) -> Tensor:
        """One optimizer step over the whole batch, in micro-batches; returns the mean loss (scalar tensor)."""
        train = self.train
        micro_batches = list(self.micro_batches(step))
        units = sum(self.task.units(batch) for batch in micro_batches)
        self.state.tokens += sum(positions(batch) for batch in micro_batches)
        micro_batches = [{key: tensor.to(self.device) for key, tensor in batch.items()} for batch in micro_batches]
        with self.autocast():
            self.chain.before_step(micro_batches, step)
        total = torch.zeros((), device=self.device)
        for batch in micro_batches:
            self.chain.before_forward(batch, step)
            with self.autocast():
                loss = self.task.loss(self.model, batch) / max(1, units)
            loss.backward()
            total += loss.detach()
        penalty = self.chain.penalty()
        if penalty is not None and penalty.requires_grad:  # a part may have none at this step
            penalty.backward()
        if train.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.trainable, train.clip_norm)
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * self.factor(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with self.watch.around(step + 1, self.state):
            self.chain.after_step(self.optimizer, step + 1)
        return total

    def micro_batches(self, step: int) -> Iterator[dict[str, Tensor]]:
        """The batch of a step, a pure function of seed and step, cut into micro-batches."""
        size = self.train.batch_size
        yield from self.batches.training_batch(self.seed, step, size, self.train.micro_batch_size or size)

    @property
    def diverged(self) -> bool:
        """Whether a loss was not finite."""
        return self.state.diverged_at is not None

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bf16 autocast where the run asks for it."""
        if self.train.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def settle(self) -> None:
        """Writes the losses of the last steps into the history; what follows a loss that is not finite is dropped."""
        history = self.state.history
        first = len(history) - len(self.pending)
        for index, loss in enumerate(self.pending, first):
            value = loss.item()
            if not math.isfinite(value):
                history[index]["train_loss"] = None
                self.state.diverged_at = self.state.step = history[index]["step"]
                del history[index + 1 :]
                self.watch.forget(self.state.step, self.state)
                break
            history[index]["train_loss"] = value
        self.pending.clear()

    @property
    def evaluation_is_due(self) -> bool:
        """Whether the run stands at a step after which it is evaluated, and was not."""
        at = self.state.step == self.total_steps or (self.state.step > 0 and self.state.step % self.eval_every == 0)
        return at and "val_loss" not in self.state.history[-1]

    def evaluate_if_due(self, stop: StopFlag, label: str) -> None:
        """Validation loss and accuracy into the history; keeps the best weights where the run is judged by them."""
        if self.diverged or not self.evaluation_is_due:
            return
        with self.chain.eval_mode() as model, self.autocast():
            poll = functools.partial(self.poll, stop, label)
            result = score(model, self.task, self.validation, EVAL_BATCH_SIZE, self.device, poll=poll)
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
        self.settle()
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
        load_optimizer(self.optimizer, saved["optimizer"])
        self.state = State(**saved["loop"])
        set_rng_state(saved["rng"])
