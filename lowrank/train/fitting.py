"""Trains runs in the memory that there is: where it runs out, less is held at once, and the batch stays what it is.

Runs that were trained together go on one after another; a run alone halves its micro-batches and goes on from its
newest checkpoint. One that does not fit even so is a result, as a divergence is: it blocks no table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lowrank.console import announce
from lowrank.measure import let_go
from lowrank.methods.chain import Chain
from lowrank.models.load import skeleton
from lowrank.spec import RunSpec
from lowrank.train import checkpoint
from lowrank.train.state import State
from lowrank.train.together import Member, Saved, Setting, Trained, train_members


def train_fitting(
    members: Sequence[Member],
    saved: Sequence[Saved | None],
    setting: Setting,
) -> Iterator[Trained]:
    """What `train_members` gives, whose arguments these are; a run that does not fit ends with its state alone."""

    def attempt(own: Sequence[Member], found: Sequence[Saved | None], cut: int | None) -> Iterator[Trained] | None:
        """The trained runs; None where memory ran out before the first was."""
        setting.ranks.tell({"run": own[0].run, "step": found[0]["loop"]["step"] if found[0] else None, "cut": cut})
        ends = train_members(own, found, setting, cut)
        try:
            first = next(ends)
        except Exception as error:
            if not setting.ranks.ran_out(error):
                raise
            return None
        return _and_then(first, ends)

    if len(members) > 1:
        ends = attempt(members, saved, None)
        if ends is not None:
            yield from ends
            return
        let_go()
        announce(f"{members[0].run} and {len(members) - 1} more: out of memory; they go on one after another")
        saved = [_newest(member, setting.work) for member in members]
    for member, found in zip(members, saved, strict=True):
        cut = found["loop"]["cut"] if found else None
        while (ends := attempt([member], [found], cut)) is None:
            let_go()
            found, cut = _newest(member, setting.work), _smaller(member.spec, cut)
            if cut is None:
                ends = iter([_unfit(member.spec, found, setting.labels)])
                break
            announce(f"{member.run}: out of memory; it goes on with micro-batches of {cut}, in the same batches")
        yield from ends


def _and_then(first: Trained, rest: Iterator[Trained]) -> Iterator[Trained]:
    yield first
    yield from rest


def _newest(member: Member, work: Path) -> Saved | None:
    return checkpoint.load_newest(member.checkpoints(work), member.facts)


def _smaller(spec: RunSpec, cut: int | None) -> int | None:
    """Half of the micro-batches that did not fit, as the chain can share them out; None where nothing is left."""
    multiple = Chain.build(spec.chain).batch_multiple()
    now = cut or spec.train.micro_batch_size or spec.train.batch_size
    return now // 2 // multiple * multiple or None


def _unfit(spec: RunSpec, saved: Saved | None, labels: int) -> Trained:
    """A run that ends where its checkpoint stands; its model has no numbers."""
    state = State(**saved["loop"]) if saved else State(history=[{"step": 0, "epoch": 0.0}])
    state.unfit = True
    return Trained(skeleton(spec.model, spec.task, labels), Chain.build(spec.chain), state, None)
