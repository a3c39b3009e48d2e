"""Trains runs to their end, one alone or several as a stack, from their newest checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.console import say
from lowrank.data.loader import TaskBatches
from lowrank.errors import Preempted
from lowrank.measure import compute_device, kept_trunk
from lowrank.methods.chain import Chain
from lowrank.methods.stacked import share_base
from lowrank.methods.stacked_chain import StackedChain
from lowrank.models.load import load_model, load_run
from lowrank.signals import StopFlag
from lowrank.spec import Pins, RunSpec
from lowrank.tasks import task
from lowrank.train import checkpoint
from lowrank.train.loop import Loop
from lowrank.train.ranks import ALONE, Ranks
from lowrank.train.stacked_loop import StackedLoop
from lowrank.train.state import State

Saved = dict[str, Any]


@dataclass(frozen=True)
class Member:
    """One run of a pack.

    Attributes:
        run: its id.
        spec: its question.
        pins: identity of its cards.
        code: digest of the code that trains it.
    """

    run: str
    spec: RunSpec
    pins: Pins
    code: str

    def checkpoints(self, work: Path) -> Path:
        """Where they lie."""
        return work / self.run / "checkpoints"

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint must have been made with."""
        return {"run": self.run, "code": self.code, "torch": torch.__version__}


@dataclass(frozen=True)
class Trained:
    """A run at its end, as if it had been trained alone.

    Attributes:
        model: with the chain attached; without numbers where the run did not fit.
        chain: the method.
        state: course and end of the run.
        base: trunk weights before training; None where they would take too much memory.
    """

    model: nn.Module
    chain: Chain
    state: State
    base: dict[str, Tensor] | None


@dataclass(frozen=True)
class Setting:
    """What runs of one job have in common.

    Attributes:
        splits: of the prepared data.
        labels: classes.
        stop: polled after each step and inside evaluations.
        work: where checkpoints go.
        save_every_s: seconds of training between two of them.
        ranks: the processes that train one run together; the first of them saves.
    """

    splits: Mapping[str, TaskBatches]
    labels: int
    stop: StopFlag
    work: Path
    save_every_s: float
    ranks: Ranks = ALONE


def resumed(members: Sequence[Member], work: Path) -> list[tuple[list[Member], list[Saved | None]]]:
    """Members that stand at the same step, with what they saved there.

    A kill between two saves leaves some members a checkpoint ahead; they go back to the one before, which is
    kept for that. A member that has diverged goes on, to its end, alone.
    """
    found = {member.run: checkpoint.load_newest(member.checkpoints(work), member.facts) for member in members}
    steps = [saved["loop"]["step"] for saved in found.values() if saved and saved["loop"]["diverged_at"] is None]
    groups: dict[tuple[int, str], list[Member]] = {}
    for member in members:
        saved = found[member.run]
        if saved and saved["loop"]["diverged_at"] is None and saved["loop"]["step"] > min(steps):
            earlier = checkpoint.load_newest(member.checkpoints(work), member.facts, up_to=min(steps))
            saved = found[member.run] = earlier or saved
        step = saved["loop"]["step"] if saved else 0
        apart = member.run if saved and saved["loop"]["diverged_at"] is not None else ""
        groups.setdefault((step, apart), []).append(member)
    return [(own, [found[member.run] for member in own]) for own in groups.values()]


def train_members(
    members: Sequence[Member],
    saved: Sequence[Saved | None],
    setting: Setting,
    cut: int | None = None,
) -> Iterator[Trained]:
    """Trains runs together and gives each back, in order.

    Args:
        members: one, or several that can be stacked.
        saved: the checkpoint that each goes on from, all at one step; None at the start.
        setting: of the job.
        cut: examples of a forward pass where a run alone has to do with fewer than it asks for.

    Raises:
        Preempted: a signal arrived; what was reached is saved.
    """
    loop: Loop
    device = compute_device()
    first, splits, labels = members[0].spec, setting.splits, setting.labels
    if len(members) == 1:
        base, chain = _attached(first, labels, device)
        settings = first.train if cut is None else first.train.model_copy(update={"micro_batch_size": cut})
        loop = Loop(
            chain.attached,
            chain,
            task(first.task),
            settings,
            splits["train"],
            splits["validation"],
            first.seed,
            device,
            setting.ranks,
        )
        if saved[0] is not None:
            loop.load_state_dict(saved[0])
        loop.state.cut = cut
    else:
        stack = _stack(members, saved, labels, device)
        specs = [member.spec for member in members]
        loop = StackedLoop(stack, task(first.task), specs, splits["train"], splits["validation"], device, saved)
    for member, found in zip(members, saved, strict=True):
        if found is not None:
            say(f"{member.run}: goes on from step {found['loop']['step']}")
    _run(loop, members, setting)
    if len(members) == 1:
        if loop.state.best_weights:
            chain.load_changed(loop.state.best_weights)
        yield Trained(chain.attached, chain, loop.state, base)
        return
    for index, member in enumerate(members):
        base, chain = _attached(member.spec, labels, device)
        state = loop.states[index]
        chain.load_changed(state.best_weights or loop.weights(index))
        chain.load_state_dict(stack.members[index].state_dict())
        yield Trained(chain.attached, chain, state, base)


def _attached(spec: RunSpec, labels: int, device: torch.device) -> tuple[dict[str, Tensor] | None, Chain]:
    """A run's base weights and its chain, attached to its model."""
    model = load_model(spec.model, spec.task, labels, spec.seed).to(device)
    return kept_trunk(model), Chain.build(spec.chain).attach(model, spec.seed)


def _stack(members: Sequence[Member], saved: Sequence[Saved | None], labels: int, device: torch.device) -> StackedChain:
    """The members' chains as one, each where its checkpoint left it. There is one copy of the trunk.

    It is made where it trains: what parts keep beside the model lies there too, and a base is coded as for one run.
    """
    chains: list[Chain] = []
    for spec, found in zip([members[0].spec, *(member.spec for member in members)], [None, *saved], strict=True):
        _, chain = load_run(spec, labels, device)
        if chains:
            share_base(chains[0].attached, chain.attached)
        if found is not None:
            chain.load_changed(found["model"], "checkpoint")
            chain.load_state_dict(found["parts"])
        chains.append(chain)
    stack = StackedChain(chains[0], chains[1:])
    for parameter in (parameter for chain in chains[1:] for parameter in chain.trainable().values()):
        parameter.data = parameter.data.cpu()  # the stack trains copies; these are held to the end for their names
    return stack


def _run(loop: Loop, members: Sequence[Member], setting: Setting) -> None:
    """Trains to the end; saves now and then, and where it is asked to stop, in the first process."""
    seconds: Callable[[], float] = lambda: sum(state.seconds for state in loop.states)  # noqa: E731
    last_saved = seconds()

    def save(loop: Loop) -> None:
        nonlocal last_saved
        if not loop.ranks.first:
            return
        for index, member in enumerate(members):
            step = loop.states[index].step
            checkpoint.save(member.checkpoints(setting.work), step, loop.state_dict(index), member.facts)
        last_saved = seconds()

    def keep(loop: Loop) -> None:
        if seconds() - last_saved >= setting.save_every_s:
            save(loop)

    label = members[0].run + (f" and {len(members) - 1} more" if len(members) > 1 else "")
    try:
        loop.run(keep, label, setting.stop)
    except Preempted:
        save(loop)
        loop.ranks.tell(loop.step)  # no process ends before the first has saved
        raise
    if len(members) > 1:  # a stop while the first are written must not cost the others their training
        save(loop)
