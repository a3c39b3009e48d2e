"""Members of different seeds in one stack: heads, batches and lengths of their own, the results of each alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from lowrank import stacks as stacks_module
from lowrank.cards import model_card
from lowrank.data.loader import open_splits
from lowrank.models import load as load_module
from lowrank.models.load import load_model
from lowrank.signals import StopFlag
from lowrank.spec import RunSpec
from lowrank.targets import head_names
from lowrank.train import together
from lowrank.train.loop import Loop
from lowrank.train.pack import Pack, train_pack
from tests.test_stacked_runs import assert_like_alone, train_alone
from tests.tolerances import PACK_20_STEPS
from tests.training_lab import history, member, pack_of, run_spec


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def one_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smoke base as if it were pre-trained: the same trunk for every seed, a head of each seed's own."""

    def load(spec: Any, task: str, labels: int, seed: int, *rest: Any) -> nn.Module:
        model, own = (load_model(spec, task, labels, drawn, *rest) for drawn in (0, seed))
        for name in head_names(model):
            model.get_submodule(name).load_state_dict(own.get_submodule(name).state_dict())
        return model

    monkeypatch.setattr(load_module, "load_model", load)
    monkeypatch.setattr(together, "load_model", load)
    card = model_card("smoke_bert").model_copy(update={"init": "pretrained"})
    monkeypatch.setattr(stacks_module, "model_card", lambda name: card)


@pytest.mark.parametrize("grouped", [False, True], ids=["as drawn", "by length"])
def test_members_of_different_seeds_see_different_texts(
    grouped: bool, one_trunk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of different lengths, so that some rows are filled up further than alone."""
    data = {"max_length": 64, "group_by_length": grouped}
    found = [run_spec("lora", seed=seed, lr=1e-3, dropout=0, data=data, batch_size=4, steps=20) for seed in (0, 1, 2)]
    pack = pack_of(*found)
    widths = [batch["input_ids"].shape[1] for batch in _batches(pack, found[0])]
    assert len(set(widths)) > 1
    sizes: list[int] = []
    inner = Loop.one_step
    monkeypatch.setattr(Loop, "one_step", lambda self, step: sizes.append(len(self.states)) or inner(self, step))
    train_pack(pack, StopFlag())
    assert set(sizes) == {3}
    train_alone(found)
    assert_like_alone(found, PACK_20_STEPS)
    assert len({history(member(spec).run)[0]["train_loss"] for spec in found}) == 3


def _batches(pack: Pack, spec: RunSpec) -> list[Any]:
    train = open_splits(pack.prepared, spec.data, spec.task)["train"]
    return [batch for step in range(10) for batch in train.training_batch(spec.seed, step, 4, 4)]
