"""The training loop. It talks to a chain and never asks which method it runs."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.console import progress
from lowrank.data.loader import TaskBatches
from lowrank.evaluate.score import scores
from lowrank.methods.chain import Chain
from lowrank.signals import StopFlag
from lowrank.spec import TrainSpec
from lowrank.tasks import Batch, Task, positions
from lowrank.train.checkpoint import load_optimizer, rng_state, set_rng_state
from lowrank.train.checks import check_batches
from lowrank.train.members import moved, totals
from lowrank.train.observer import Watch
from lowrank.train.ranks import ALONE, Ranks
from lowrank.train.schedules import length_of, schedule
from lowrank.train.state import State

FINITE_CHECK_EVERY = 20
"""Steps between two looks at the loss: a look waits for the device."""

EVAL_BATCH_SIZE = 128


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
        ranks: the processes that train the run together.

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
        ranks: Ranks = ALONE,
    ) -> None:
        self.ranks = ranks
        self.model, self.chain, self.task, self.train = model, chain, task, train
        self.batches, self.validation, self.seed, self.device = batches, validation, seed, device
        self.steps_per_epoch, self.total_steps, self.eval_every = length_of(train, batches.rows)
        self.states = [State()]  # one for each member of a stack
        self.pending: list[Tensor] = []  # losses still on the device, of the last steps of the history
        check_batches(chain, train, None if batches.whole_batches else batches.rows)
        self.trainable = list(chain.trainable().values())
        self.optimizer = chain.optimizer(train)
        self.factor = chain.schedule(train, self.total_steps) or schedule(train, self.total_steps)
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.watch = Watch(train.observe, model)
        torch.manual_seed(seed)

    @property
    def state(self) -> State:
        """Where the run stands."""
        return self.states[0]

    @property
    def going(self) -> list[State]:
        """The members that have not diverged."""
        return [state for state in self.states if state.diverged_at is None]

    @property
    def step(self) -> int:
        """Steps taken; a member that diverged stands where it did."""
        return max(state.step for state in self.states)

    def run(self, keep: Callable[[Loop], None], label: str, stop: StopFlag | None = None) -> None:
        """Trains from where `states` stand to the end, or to divergence.

        Args:
            keep: called after each step, to save now and then.
            label: names the run in the progress bar and in messages.
            stop: polled after each step and inside evaluations; None where no signal is listened for.

        Raises:
            Preempted: a signal arrived; `state_dict` says where the run stands.
        """
        stop = self.ranks.agreed(StopFlag() if stop is None else stop)
        if self.total_steps == 0:
            self.state.history.append({"step": 0, "epoch": 0.0})
        self.evaluate_if_due(stop, label)  # an evaluation that was cut short, or the untouched base
        self.model.train()
        first = self.step
        for step in progress(range(first, self.total_steps), total=self.total_steps, start=first, label=label):
            if self.diverged:
                break
            self.take_step(step)
            self.evaluate_if_due(stop, label)
            keep(self)
            self.poll(stop, label)
        self.settle()

    def poll(self, stop: StopFlag, label: str) -> None:
        """Raises `Preempted` if a signal has arrived."""
        stop.check(f"{label} is saved at step {self.step} of {self.total_steps}")

    def take_step(self, step: int) -> None:
        """One optimizer step and its row in the history."""
        began = time.perf_counter()
        self.pending.append(self.one_step(step))
        for state, lr in zip(self.states, self.learning_rates(step), strict=True):
            if state.diverged_at is None:
                state.step = step + 1
                state.history.append({"step": step + 1, "epoch": (step + 1) / self.steps_per_epoch, "lr": lr})
        going = self.going
        if self.evaluation_is_due or (step + 1) % FINITE_CHECK_EVERY == 0:
            self.settle()
        elapsed = time.perf_counter() - began
        for state in going:
            state.share(elapsed, len(going))

    def learning_rates(self, step: int) -> list[float]:
        """Each member's, at a step."""
        return [self.train.lr * self.factor(step)]

    def one_step(self, step: int) -> Tensor:
        """One optimizer step over the whole batch, in micro-batches; returns the mean loss: (), in a stack (K,)."""
        micro_batches, units = self.gather(step)
        micro_batches = [moved(batch, self.device) for batch in micro_batches]
        whole = totals(units, self.device)
        with self.autocast():
            self.chain.before_step(micro_batches, step)
        losses: list[Tensor] = []
        with self.ranks.apart(self.device):
            for batch, own in self.ranks.mine(list(zip(micro_batches, units, strict=True))):
                self.chain.before_forward(batch, step)
                with self.autocast():
                    losses.append(self.losses(batch, own) / whole)
                losses[-1].sum().backward()
        loss = self.ranks.total(losses, self.trainable)
        penalty = self.chain.penalty()
        if penalty is not None and penalty.requires_grad:  # a part may have none at this step
            penalty.backward()
        self.update(step)
        return loss

    def gather(self, step: int) -> tuple[Sequence[Batch], list[tuple[int, ...]]]:
        """The batch of a step, a pure function of seed and step, in micro-batches, and each member's units in them."""
        size = self.train.batch_size
        batches = list(self.batches.training_batch(self.seed, step, size, self.train.micro_batch_size or size))
        self.state.tokens += sum(map(positions, batches))
        return batches, [(self.task.units(batch),) for batch in batches]

    def losses(self, batch: Batch, units: tuple[int, ...]) -> Tensor:
        """The sum of the unit losses of a micro-batch: (), in a stack (K,)."""
        return self.task.loss(self.model, batch)

    def update(self, step: int) -> None:
        """Moves the weights by the gradients."""
        if self.train.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.trainable, self.train.clip_norm)
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * self.factor(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with self.watch.around(step + 1, self.state):
            self.chain.after_step(self.optimizer, step + 1)

    @property
    def diverged(self) -> bool:
        """Whether a loss was not finite; in a stack, a loss of every member."""
        return not self.going

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bf16 autocast where the run asks for it."""
        if self.train.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def settle(self) -> None:
        """Writes the losses of the last steps into the history; what follows a loss that is not finite is dropped."""
        if not self.pending:
            return
        taken = torch.stack(self.pending).view(len(self.pending), -1).t().tolist()  # a list of losses for each member
        self.pending.clear()
        for state, losses in zip(self.states, taken, strict=True):
            if state.diverged_at is None:
                state.record(losses)

    @property
    def evaluation_is_due(self) -> bool:
        """Whether the run stands at a step after which it is evaluated, and was not."""
        step = self.step
        at = step == self.total_steps or (step > 0 and step % self.eval_every == 0)
        return at and any("val_loss" not in state.history[-1] for state in self.going)

    def evaluate_if_due(self, stop: StopFlag, label: str) -> None:
        """Validation loss and accuracy into the history; keeps the best weights where the run is judged by them."""
        if self.diverged or not self.evaluation_is_due:
            return
        with self.chain.eval_mode() as model, self.autocast():
            poll = functools.partial(self.poll, stop, label)
            found = scores(
                model, self.task, self.validation, EVAL_BATCH_SIZE, self.device, poll=poll, members=len(self.states)
            )
        for index, (state, result) in enumerate(zip(self.states, found, strict=True)):
            if state.diverged_at is None and state.judge(result) and self.train.select == "best":
                state.best_weights = {name: tensor.clone() for name, tensor in self.weights(index).items()}

    def weights(self, member: int = 0) -> dict[str, Tensor]:
        """Every tensor of a member that differs from the base."""
        return {name: tensor.detach() for name, tensor in self.chain.changed().items()}

    def state_dict(self, member: int = 0) -> dict[str, Any]:
        """Everything that decides how a member goes on."""
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
        self.states = [State(**saved["loop"])]
        set_rng_state(saved["rng"])
