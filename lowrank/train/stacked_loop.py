"""The loop over a stack: the steps of K members taken together, each member's losses its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lowrank.data.loader import TaskBatches
from lowrank.methods.stacked_chain import StackedChain
from lowrank.spec import RunSpec
from lowrank.tasks import Batch, Task, forward, positions
from lowrank.train.checkpoint import rng_state
from lowrank.train.loop import Loop
from lowrank.train.members import join, sums
from lowrank.train.ranks import ALONE
from lowrank.train.schedules import length_of
from lowrank.train.stacked_adamw import StackedAdamW
from lowrank.train.state import State


class StackedLoop(Loop):
    """K runs whose specs differ in what members of a stack may differ in.

    Args:
        chain: of the members.
        task: loss and units.
        specs: the members'.
        batches: the training split.
        validation: the validation split.
        device: where the stack lies.
        saved: the checkpoint that each member goes on from, all at one step; None at the start. Weights and what
            parts keep are in the chain already.
    """

    def __init__(
        self,
        chain: StackedChain,
        task: Task,
        specs: Sequence[RunSpec],
        batches: TaskBatches,
        validation: TaskBatches,
        device: torch.device,
        saved: Sequence[Mapping[str, Any] | None],
    ) -> None:
        self.model, self.chain, self.stack, self.task, self.train = chain.attached, chain, chain, task, specs[0].train
        self.batches, self.validation, self.device, self.specs = batches, validation, device, specs
        self.steps_per_epoch, self.total_steps, self.eval_every = length_of(self.train, batches.rows)
        self.states = [State() for _ in specs]
        self.ranks, self.pending = ALONE, []
        self.trainable = list(chain.trainable().values())
        self.frozen: dict[int, dict[str, Tensor]] = {}
        """Diverged members: their weights as they were when that was seen."""
        self.adamw = StackedAdamW(chain.trainable(), [spec.train for spec in specs], self.total_steps)
        going_on = [found for found in saved if found is not None]
        if going_on:
            self._resume(going_on)

    def gather(self, step: int) -> tuple[Sequence[Batch], list[tuple[int, ...]]]:
        """The members' batches side by side, in micro-batches, and each member's units in them."""
        size = self.train.batch_size
        cut = self.train.micro_batch_size or size
        seeds = {spec.seed for spec in self.specs}
        by_seed = {seed: list(self.batches.training_batch(seed, step, size, cut)) for seed in seeds}
        counted = {
            seed: (sum(map(positions, own)), [self.task.units(batch) for batch in own]) for seed, own in by_seed.items()
        }
        for state, spec in zip(self.states, self.specs, strict=True):
            state.tokens += counted[spec.seed][0] if state.diverged_at is None else 0
        side_by_side = zip(*(by_seed[spec.seed] for spec in self.specs), strict=True)
        units = zip(*(counted[spec.seed][1] for spec in self.specs), strict=True)
        return [join(batches, self.batches.pad_id) for batches in side_by_side], list(units)

    def losses(self, batch: Batch, units: tuple[int, ...]) -> Tensor:
        """Each member's sum of unit losses (K,)."""
        return sums(self.task.losses(forward(self.model, batch), batch)[0], units)

    def update(self, step: int) -> None:
        """Moves the weights of all members."""
        self.adamw.step()
        self.chain.after_step(self.adamw.optimizer, step + 1)

    def learning_rates(self, step: int) -> list[float]:
        """Each member's, at a step."""
        return [spec.train.lr * self.adamw.factors[index][step] for index, spec in enumerate(self.specs)]

    def settle(self) -> None:
        """As for one run; a member that is seen to have diverged stands still from then on."""
        super().settle()
        self._freeze()

    def weights(self, member: int = 0) -> dict[str, Tensor]:
        """Every tensor of a member that differs from the base."""
        return self.frozen.get(member) or self.stack.weights(member)

    def state_dict(self, member: int = 0) -> dict[str, Any]:
        """What the same member alone would save, so that it goes on in any company."""
        self.settle()
        moments = {name: self.stack.unstacked(found, member) for name, found in self.adamw.moments().items()}
        state = self.states[member]
        names = list(self.stack.members[member].trainable())
        step = torch.tensor(float(state.step))
        return {
            "loop": vars(state),
            "model": self.weights(member),
            "optimizer": {
                "state": {
                    index: {"step": step, **{moment: found[name] for moment, found in moments.items()}}
                    for index, name in enumerate(names)
                },
                "param_groups": self.stack.members[member]
                .optimizer(self.specs[member].train)
                .state_dict()["param_groups"],
            },
            "parts": self.stack.members[member].state_dict(),
            "rng": rng_state(),
        }

    def _resume(self, saved: Sequence[Mapping[str, Any]]) -> None:
        self.states = [State(**found["loop"]) for found in saved]
        self.adamw.resume(self.step)
        for moment, stacked in self.adamw.moments().items():
            for member, found in enumerate(saved):
                own = self.stack.unstacked(stacked, member)
                for index, name in enumerate(self.stack.members[member].trainable()):
                    own[name].copy_(found["optimizer"]["state"][index][moment])

    def _freeze(self) -> None:
        for index, state in enumerate(self.states):
            if state.diverged_at is not None and index not in self.frozen:
                self.frozen[index] = {name: tensor.clone() for name, tensor in self.stack.weights(index).items()}
                self.adamw.freeze(index)
