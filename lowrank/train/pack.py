"""Trains a pack: runs that share model, data and chain, in one process.

A member that is finished is skipped, one with a checkpoint goes on from it. A member works under
`work/<run>/` and appears under `results/runs/<run>/` in one step when it is done.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lowrank.console import announce, say
from lowrank.data.loader import open_splits
from lowrank.errors import IntegrityError
from lowrank.files import MANIFEST, drop_leftovers, read_json, replacing_folder, seal, write_json
from lowrank.measure import counts, let_go, weight_norms
from lowrank.provenance import provenance
from lowrank.run_folder import HISTORY, OBSERVED, RUNS, SPEC, WEIGHTS, WORK, finished, holding
from lowrank.signals import StopFlag
from lowrank.spec import identity
from lowrank.train import checkpoint
from lowrank.train.events import write_events
from lowrank.train.fitting import train_fitting
from lowrank.train.history import write_history
from lowrank.train.ranks import ALONE, Ranks, RanOut
from lowrank.train.state import State
from lowrank.train.together import Member, Setting, Trained, resumed, train_members

CHECKPOINT_EVERY_S = 120.0
"""Seconds of training between two checkpoints; one more is written when the process is asked to stop."""


@dataclass(frozen=True)
class Pack:
    """What the members share.

    Attributes:
        name: its id, which the manifests of the members name.
        members: in the order in which they are named.
        stacks: their ids, those that train together side by side, in the order in which they are trained.
        prepared: folder of the prepared data.
        keep_weights: whether `weights.safetensors` is written.
        scores: files that `after` writes into each run's folder.
        threads: CPU threads of a process.
        processes: how many train each member together.
        runs: where finished runs appear.
        work: where unfinished ones lie.
    """

    name: str
    members: tuple[Member, ...]
    stacks: tuple[tuple[str, ...], ...]
    prepared: Path
    keep_weights: bool = True
    scores: tuple[str, ...] = ()
    threads: int = 1
    processes: int = 1
    runs: Path = RUNS
    work: Path = WORK

    def is_finished(self, member: Member) -> bool:
        """Whether a member is whole, trained by this code, and holds what this pack promises of it."""
        needs = (*self.scores, *((WEIGHTS,) if self.keep_weights else ()))
        return finished(member.run, member.code, needs, self.runs) is not None


After = Callable[[Member, Trained, Path], None]
"""Called with a trained member and its unsealed folder; the model may be changed: it is not used again."""


def train_pack(pack: Pack, stop: StopFlag, after: After | None = None, ranks: Ranks = ALONE) -> None:
    """Trains every member that is not finished: one stack after another.

    Args:
        pack: the members.
        stop: polled after each step, inside evaluations and between members.
        after: scores a member whose weights are not kept.
        ranks: the processes that train each member together, this one the first of them; the others `follow`.

    Raises:
        Preempted: a signal arrived; what was reached is saved.
        LowrankError: another process trains a member, or a file cannot be written.
    """
    torch.set_num_threads(pack.threads)
    place = {member.run: f"{index}/{len(pack.members)} {member.run}" for index, member in enumerate(pack.members, 1)}
    waiting = {member.run: member for member in pack.members if not pack.is_finished(member)}
    for member in pack.members:
        if member.run not in waiting:
            say(f"{place[member.run]}: finished before")
    labels = len(read_json(pack.prepared / MANIFEST).get("labels") or []) if waiting else 0
    alone = tuple((member.run,) for member in pack.members)
    for stack in pack.stacks if ranks.count == 1 else alone:
        members = [waiting[run] for run in stack if run in waiting]
        if not members:
            continue
        stop.check(f"{len(pack.members) - len(waiting)} of {len(pack.members)} runs are finished")
        with contextlib.ExitStack() as held:
            for member in members:
                held.enter_context(holding(member.run, pack.work))
            members = [member for member in members if not pack.is_finished(member)]  # by who held it until now
            for together, saved in resumed(members, pack.work):
                data = together[0].spec.data
                splits = open_splits(pack.prepared, data, together[0].spec.task)
                setting = Setting(splits, labels, stop, pack.work, CHECKPOINT_EVERY_S, ranks)
                ends = train_fitting(together, saved, setting)
                for member, trained in zip(together, ends, strict=True):
                    _publish(pack, member, trained, after)
                    shutil.rmtree(pack.work / member.run, ignore_errors=True)
                    announce(f"{place[member.run]}: {_summary(trained.state)}")
        for run in stack:
            waiting.pop(run, None)
        if len(stack) > 1:
            let_go()  # models refer to themselves: the next stack would come on top of this one
    ranks.tell(None)


def follow(pack: Pack, stop: StopFlag, ranks: Ranks) -> None:
    """What every process but the first does: trains the members that the first names, and writes nothing.

    Raises:
        Preempted: a signal arrived at one of the processes; the first has saved what was reached.
        IntegrityError: the checkpoint that the first goes on from is not to be read here.
    """
    torch.set_num_threads(pack.threads)
    labels = len(read_json(pack.prepared / MANIFEST).get("labels") or [])
    while (asked := ranks.tell()) is not None:
        (member,), step = [member for member in pack.members if member.run == asked["run"]], asked["step"]
        saved = None if step is None else checkpoint.load_newest(member.checkpoints(pack.work), member.facts, step)
        if step is not None and (saved is None or saved["loop"]["step"] != step):
            raise IntegrityError(f"{member.run}: process {ranks.rank} does not find the checkpoint of step {step}")
        splits = open_splits(pack.prepared, member.spec.data, member.spec.task)
        setting = Setting(splits, labels, stop, pack.work, math.inf, ranks)
        try:
            for _ in train_members([member], [saved], setting, asked["cut"]):
                pass
        except RanOut:  # in one process or several; the first says how it goes on
            let_go()


def _publish(pack: Pack, member: Member, trained: Trained, after: After | None) -> None:
    """Writes the run's folder, which appears whole or not at all."""
    target = pack.runs / member.run
    drop_leftovers(target)
    with replacing_folder(target) as folder:
        write_json(folder / SPEC, {"run": member.run, **identity(member.spec, member.pins)})
        write_history(folder / HISTORY, trained.state.history)
        write_events(folder / "tensorboard", trained.state.history)
        for name, rows in trained.state.observed.items():
            write_json(folder / OBSERVED / f"{name}.json", rows)
        if pack.keep_weights:
            checkpoint.write_tensors(folder / WEIGHTS, {} if trained.state.unfit else trained.chain.changed())
        facts = _manifest(pack, member, trained)
        if after is not None:
            after(member, trained, folder)
        seal(folder, facts)


def _manifest(pack: Pack, member: Member, trained: Trained) -> dict[str, Any]:
    state = trained.state
    evaluated = [row for row in state.history if row.get("val_loss") is not None]
    ok = state.status == "ok"
    return {
        "run": member.run,
        "pack": pack.name,
        "status": state.status,
        "cause": state.cause,
        "code": member.code,
        "metrics": {
            "steps": state.step,
            "best_val_loss": state.best_val_loss,
            "last_val_loss": evaluated[-1]["val_loss"] if evaluated and ok else None,
            "last_train_loss": state.history[-1].get("train_loss") if state.history else None,
            "mean_train_loss": _mean([row.get("train_loss") for row in state.history]),
            "train_time_s": round(state.seconds, 3),
            "trained_together": state.together,
            "tokens": state.tokens,
            **({} if state.unfit else counts(trained.model)),
            **(weight_norms(trained.model, trained.base) if ok else {}),
        },
        "cut": None if state.cut is None else {"micro_batch_size": state.cut, "because": "out of memory"},
        "provenance": {**provenance(), "threads": pack.threads, "processes": pack.processes},
    }


def _mean(losses: list[float | None]) -> float | None:
    """What the Hugging Face Trainer calls train_loss; None of a run that took no step or diverged."""
    there = [loss for loss in losses if loss is not None]
    return sum(there) / len(there) if there and len(there) == len(losses) else None


def _summary(state: State) -> str:
    if state.cause is not None:
        return f"{state.status}: {state.cause}"
    best = "none" if state.best_val_loss is None else f"{state.best_val_loss:.4f}"
    return f"{state.step} steps in {state.seconds:.1f} s, best validation loss {best}"
