"""Trains a pack: runs that share model, data and chain, in one process.

A member that is finished is skipped, one with a checkpoint goes on from it. A member works under
`work/<run>/` and appears under `results/runs/<run>/` in one step when it is done.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowrank.console import announce, say
from lowrank.data.loader import TaskBatches, open_splits
from lowrank.errors import Preempted
from lowrank.files import drop_leftovers, read_json, replacing_folder, seal, write_json
from lowrank.measure import counts, trunk_weights, weight_norms
from lowrank.methods.chain import Chain
from lowrank.models.load import load_model
from lowrank.provenance import provenance
from lowrank.run_folder import HISTORY, OBSERVED, RUNS, SPEC, WEIGHTS, WORK, finished, holding
from lowrank.signals import StopFlag
from lowrank.spec import Pins, RunSpec, identity
from lowrank.tasks import task
from lowrank.train import checkpoint
from lowrank.train.events import write_events
from lowrank.train.history import write_history
from lowrank.train.loop import Loop, State

CHECKPOINT_EVERY_S = 120.0
"""Seconds of training between two checkpoints; one more is written when the process is asked to stop."""

NORMS_UP_TO_PARAMETERS = 10**9
"""Above this, how far the weights moved is not recorded: it would take a second copy of the base."""


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


@dataclass(frozen=True)
class Pack:
    """What the members share.

    Attributes:
        name: its id, which the manifests of the members name.
        members: in the order in which they are trained.
        prepared: folder of the prepared data.
        keep_weights: whether `weights.safetensors` is written.
        scores: files that `after` writes into each run's folder.
        threads: CPU threads.
        runs: where finished runs appear.
        work: where unfinished ones lie.
    """

    name: str
    members: tuple[Member, ...]
    prepared: Path
    keep_weights: bool = True
    scores: tuple[str, ...] = ()
    threads: int = 1
    runs: Path = RUNS
    work: Path = WORK

    def is_finished(self, member: Member) -> bool:
        """Whether a member is whole, trained by this code, and holds what this pack promises of it."""
        needs = (*self.scores, *((WEIGHTS,) if self.keep_weights else ()))
        return finished(member.run, member.code, needs, self.runs) is not None


After = Callable[[Member, Loop, Path], None]
"""Called with a trained member, its loop and its unsealed folder; the model may be changed: it is not used again."""


def train_pack(pack: Pack, stop: StopFlag, after: After | None = None) -> None:
    """Trains every member that is not finished.

    Args:
        pack: the members.
        stop: polled after each step, inside evaluations and between members.
        after: scores a member whose weights are not kept.

    Raises:
        Preempted: a signal arrived; what was reached is saved.
        LowrankError: another process trains a member, or a file cannot be written.
    """
    torch.set_num_threads(pack.threads)
    splits: dict[str, TaskBatches] = {}
    for index, member in enumerate(pack.members, 1):
        place = f"{index}/{len(pack.members)} {member.run}"
        stop.check(f"{index - 1} of {len(pack.members)} runs are finished")
        if pack.is_finished(member):
            say(f"{place}: finished before")
            continue
        with holding(member.run, pack.work):
            if pack.is_finished(member):  # by the process that held it until now
                continue
            splits = splits or open_splits(pack.prepared, member.spec.data, member.spec.task)
            loop = _train(pack, member, splits, stop, after)
            shutil.rmtree(pack.work / member.run, ignore_errors=True)
        announce(f"{place}: {_summary(loop.state)}")


def _train(pack: Pack, member: Member, splits: dict[str, TaskBatches], stop: StopFlag, after: After | None) -> Loop:
    spec = member.spec
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    labels = read_json(pack.prepared / "manifest.json").get("labels") or []
    model = load_model(spec.model, spec.task, len(labels), spec.seed).to(device)
    base = trunk_weights(model) if counts(model)["parameters"] <= NORMS_UP_TO_PARAMETERS else None
    chain = Chain.build(spec.chain).attach(model, spec.seed)
    loop = Loop(model, chain, task(spec.task), spec.train, splits["train"], splits["validation"], spec.seed, device)
    _run(loop, pack, member, stop)
    if loop.state.best_weights:
        chain.load_changed(loop.state.best_weights)
    _publish(pack, member, loop, base, after)
    return loop


def _run(loop: Loop, pack: Pack, member: Member, stop: StopFlag) -> None:
    """Trains from the newest checkpoint to the end; saves now and then, and where it is asked to stop."""
    folder = pack.work / member.run / "checkpoints"
    facts = {"run": member.run, "code": member.code, "torch": torch.__version__}
    saved = checkpoint.load_newest(folder, facts)
    if saved is not None:
        loop.load_state_dict(saved)
        say(f"{member.run}: goes on from step {loop.state.step}")
    last_saved = loop.state.seconds

    def save(loop: Loop) -> None:
        nonlocal last_saved
        checkpoint.save(folder, loop.state.step, loop.state_dict(), facts)
        last_saved = loop.state.seconds

    def keep(loop: Loop) -> None:
        if loop.state.seconds - last_saved >= CHECKPOINT_EVERY_S:
            save(loop)

    try:
        loop.run(keep, member.run, stop)
    except Preempted:
        save(loop)
        raise


def _publish(pack: Pack, member: Member, loop: Loop, base: dict[str, Tensor] | None, after: After | None) -> None:
    """Writes the run's folder, which appears whole or not at all."""
    target = pack.runs / member.run
    drop_leftovers(target)
    with replacing_folder(target) as folder:
        write_json(folder / SPEC, {"run": member.run, **identity(member.spec, member.pins)})
        write_history(folder / HISTORY, loop.state.history)
        write_events(folder / "tensorboard", loop.state.history)
        for name, rows in loop.state.observed.items():
            write_json(folder / OBSERVED / f"{name}.json", rows)
        if pack.keep_weights:
            checkpoint.write_tensors(folder / WEIGHTS, loop.chain.changed())
        facts = _manifest(pack, member, loop, base)
        if after is not None:
            after(member, loop, folder)
        seal(folder, facts)


def _manifest(pack: Pack, member: Member, loop: Loop, base: dict[str, Tensor] | None) -> dict[str, Any]:
    state = loop.state
    evaluated = [row for row in state.history if row.get("val_loss") is not None]
    sizes = counts(loop.model)
    diverged = state.diverged_at is not None
    return {
        "run": member.run,
        "pack": pack.name,
        "status": "diverged" if diverged else "ok",
        "cause": state.cause,
        "code": member.code,
        "metrics": {
            "steps": state.step,
            "best_val_loss": state.best_val_loss,
            "last_val_loss": evaluated[-1]["val_loss"] if evaluated and not diverged else None,
            "last_train_loss": state.history[-1].get("train_loss") if state.history else None,
            "mean_train_loss": _mean([row.get("train_loss") for row in state.history]),
            "train_time_s": round(state.seconds, 3),
            "tokens": state.tokens,
            **sizes,
            **({} if diverged else weight_norms(loop.model, base)),
        },
        "provenance": {**provenance(), "threads": pack.threads},
    }


def _mean(losses: list[float | None]) -> float | None:
    """What the Hugging Face Trainer calls train_loss; None of a run that took no step or diverged."""
    there = [loss for loss in losses if loss is not None]
    return sum(there) / len(there) if there and len(there) == len(losses) else None


def _summary(state: State) -> str:
    if state.diverged_at is not None:
        return f"diverged at step {state.diverged_at}"
    best = "none" if state.best_val_loss is None else f"{state.best_val_loss:.4f}"
    return f"{state.step} steps in {state.seconds:.1f} s, best validation loss {best}"
