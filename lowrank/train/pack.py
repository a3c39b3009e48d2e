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
from safetensors.torch import save_file
from torch import Tensor

from lowrank.console import announce, say
from lowrank.data.loader import TaskBatches, open_splits
from lowrank.files import read_json, replacing_folder, seal, write_json
from lowrank.measure import counts, trunk_weights, weight_norms
from lowrank.methods.chain import Chain
from lowrank.models.load import load_model
from lowrank.provenance import provenance
from lowrank.run_folder import HISTORY, RUNS, SPEC, WEIGHTS, WORK, finished
from lowrank.signals import StopFlag
from lowrank.spec import Pins, RunSpec, identity
from lowrank.tasks import task
from lowrank.train import checkpoint
from lowrank.train.history import write_events, write_history
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
        threads: CPU threads.
        runs: where finished runs appear.
        work: where unfinished ones lie.
    """

    name: str
    members: tuple[Member, ...]
    prepared: Path
    keep_weights: bool = True
    threads: int = 1
    runs: Path = RUNS
    work: Path = WORK


After = Callable[[Member, Loop, Path], None]
"""Called with a trained member, its loop and its unsealed folder: for evaluation without kept weights."""


def train_pack(pack: Pack, stop: StopFlag, after: After | None = None) -> None:
    """Trains every member that is not finished.

    Raises:
        Preempted: a signal arrived; what was reached is saved.
    """
    torch.set_num_threads(pack.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec = pack.members[0].spec
    splits = open_splits(pack.prepared, spec.data, spec.task)
    for index, member in enumerate(pack.members, 1):
        if finished(member.run, member.code, pack.runs) is not None:
            say(f"{index}/{len(pack.members)} {member.run}: finished before")
            continue
        state = _train(pack, member, splits, device, stop, after)
        announce(f"{index}/{len(pack.members)} {member.run}: {_summary(state)}")


def _train(
    pack: Pack,
    member: Member,
    splits: dict[str, TaskBatches],
    device: torch.device,
    stop: StopFlag,
    after: After | None,
) -> State:
    spec, work = member.spec, pack.work / member.run
    labels = read_json(pack.prepared / "manifest.json").get("labels") or []
    model = load_model(spec.model, spec.task, len(labels), spec.seed).to(device)
    base = trunk_weights(model) if counts(model)["parameters"] <= NORMS_UP_TO_PARAMETERS else None
    chain = Chain.build(spec.chain).attach(model, spec.seed)
    loop = Loop(model, chain, task(spec.task), spec.train, splits["train"], splits["validation"], spec.seed, device)
    facts = {"run": member.run, "code": member.code, "torch": torch.__version__}
    saved = checkpoint.load_newest(work / "checkpoints", facts)
    if saved is not None:
        loop.load_state_dict(saved)
        say(f"{member.run}: goes on from step {loop.state.step}")
    last_saved = [loop.state.seconds]

    def after_step(loop: Loop) -> None:
        if stop or loop.state.seconds - last_saved[0] >= CHECKPOINT_EVERY_S:
            checkpoint.save(work / "checkpoints", loop.state.step, loop.state_dict(), facts)
            last_saved[0] = loop.state.seconds
        stop.check(f"{member.run} is saved at step {loop.state.step} of {loop.total_steps}")

    state = loop.run(after_step, member.run)
    if state.best_weights:
        chain.load_changed(state.best_weights)
    with replacing_folder(pack.runs / member.run) as folder:
        write_json(folder / SPEC, {"run": member.run, **identity(spec, member.pins)})
        write_history(folder / HISTORY, state.history)
        write_events(folder / "tensorboard", state.history)
        if pack.keep_weights:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in chain.changed().items()}
            save_file(tensors, folder / WEIGHTS)
        if after is not None:
            after(member, loop, folder)
        seal(folder, _manifest(pack, member, loop, base))
    shutil.rmtree(work, ignore_errors=True)
    return state


def _manifest(pack: Pack, member: Member, loop: Loop, base: dict[str, Tensor] | None) -> dict[str, Any]:
    state = loop.state
    evaluated = [row for row in state.history if row.get("val_loss") is not None]
    sizes = counts(loop.model)
    diverged = state.diverged_at is not None
    return {
        "run": member.run,
        "pack": pack.name,
        "status": "diverged" if diverged else "ok",
        "cause": f"the loss was not finite at step {state.diverged_at}" if diverged else None,
        "code": member.code,
        "metrics": {
            "steps": state.step,
            "best_val_loss": state.best_val_loss,
            "last_val_loss": evaluated[-1]["val_loss"] if evaluated and not diverged else None,
            "last_train_loss": state.history[-1].get("train_loss") if state.history else None,
            "train_time_s": round(state.seconds, 3),
            "tokens": state.tokens,
            **sizes,
            **({} if diverged else weight_norms(loop.model, base)),
        },
        "provenance": {**provenance(), "threads": pack.threads},
    }


def _summary(state: State) -> str:
    if state.diverged_at is not None:
        return f"diverged at step {state.diverged_at}"
    best = "none" if state.best_val_loss is None else f"{state.best_val_loss:.4f}"
    return f"{state.step} steps in {state.seconds:.1f} s, best validation loss {best}"
