"""Masked language models: what is hidden, that it depends on seed, epoch and row alone, and that runs of it resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lowrank.data.loader import TaskBatches, open_splits
from lowrank.data.masking import Masking, masking
from lowrank.errors import ConfigError
from lowrank.files import read_json
from lowrank.models.load import load_model, skeleton
from lowrank.signals import StopFlag
from lowrank.spec import DataSpec, ModelSpec, RunSpec, data_id
from lowrank.targets import head_names
from lowrank.tasks import IGNORED, task
from lowrank.train.pack import train_pack
from tests.test_train_resume import assert_same, stopped_and_resumed
from tests.training_lab import history, pack_of, prepared, run_spec

MASK, VOCABULARY = 4, 50
SPECIAL = torch.tensor([0, 1, 2, 3, MASK])


def hide(rows: int, width: int, fraction: float = 0.15, draw: tuple[int, int] | None = (0, 0)) -> tuple[Tensor, ...]:
    ids = torch.full((rows, width), 9)
    ids[:, 0], real = 2, torch.ones(rows, width, dtype=torch.bool)
    real[:, -1] = False
    return ids, real, *Masking(fraction, MASK, SPECIAL, VOCABULARY)(ids, real, torch.arange(rows), draw)


def test_shares_are_those_of_bert() -> None:
    ids, real, seen, labels = hide(400, 102)
    chosen = labels != IGNORED
    assert not chosen[:, 0].any(), "a special token was chosen"
    assert not (chosen & ~real).any(), "padding was chosen"
    assert torch.equal(seen[~chosen], ids[~chosen])
    assert (labels[chosen] == 9).all()
    share = chosen.sum() / (400 * 100)
    assert abs(share - 0.15) < 0.01
    shown = seen[chosen]
    # A random token is the right one once in fifty.
    for wanted, found in ((0.8 + 0.1 / 50, shown == MASK), (0.1 + 0.1 / 50, shown == 9)):
        assert abs(found.float().mean() - wanted) < 0.02
    assert shown.max() < VOCABULARY


def test_fraction_zero_hides_nothing_and_predicts_everything() -> None:
    ids, real, seen, labels = hide(3, 8, fraction=0.0)
    assert torch.equal(seen, ids)
    assert torch.equal(labels, ids)
    assert (labels[~real] != IGNORED).any(), "padding counts, as in the document's script"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("masked"))
        return prepared(run_spec()).resolve()


def batches(folder: Path) -> TaskBatches:
    return open_splits(folder, DataSpec(card="smoke_topics", max_length=16), "masked_lm")["train"]


def test_a_mask_is_a_function_of_seed_epoch_and_row(folder: Path) -> None:
    split, rows = batches(folder), torch.tensor([5, 17, 2, 30])
    (whole,) = split.micro_batches(rows, 4, draw=(3, 1))
    for index, (single,) in enumerate(zip(split.micro_batches(rows, 1, draw=(3, 1)))):
        width = single["input_ids"].shape[1]
        for key in ("input_ids", "labels"):
            assert torch.equal(single[key][0], whole[key][index, :width]), "the batch changed a row's mask"
    for other in ((3, 2), (4, 1), None):
        (found,) = split.micro_batches(rows, 4, draw=other)
        assert not torch.equal(found["labels"], whole["labels"])
    (first,), (again,) = split.micro_batches(rows, 4), split.micro_batches(rows, 4)
    assert torch.equal(first["labels"], again["labels"]), "evaluation's masks never change"
    assert torch.equal(torch.where(whole["labels"] == IGNORED, whole["input_ids"], whole["labels"]) == 0,
                       whole["attention_mask"] == 0)  # fmt: skip


def test_a_tokenizer_without_a_mask_token_is_refused(folder: Path) -> None:
    manifest = read_json(folder / "manifest.json")
    del manifest["special_ids"]["[MASK]"]
    with pytest.raises(ConfigError, match=r"tokenizer of 'smoke_bert' has no mask token.*allowed: one of \[MASK\]"):
        masking(manifest, 0.15, folder)


def test_masks_are_no_matter_of_prepared_data() -> None:
    plain, other = DataSpec(card="x"), DataSpec(card="x", mask_fraction=0.3)
    assert data_id(plain, {}) == data_id(other, {})


def masked() -> RunSpec:
    spec = run_spec([{"part": "lora", "targets": ["query", "value"]}])
    model = {"card": "smoke_bert", "dropout": 0}
    return RunSpec.model_validate({**spec.dump(), "task": "masked_lm", "model": model})


def test_resumes_bit_for_bit_and_accumulates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = masked()
    pack = pack_of(spec)
    train_pack(pack, StopFlag())
    run = pack.members[0].run
    losses = [row["train_loss"] for row in history(run)]
    assert_same(stopped_and_resumed(spec, 3))
    train = {**spec.train.model_dump(), "micro_batch_size": 3}
    parts = pack_of(RunSpec.model_validate({**spec.dump(), "train": train}))
    train_pack(parts, StopFlag())
    assert [row["train_loss"] for row in history(parts.members[0].run)] == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize(("card", "wanted"), [
    ("smoke_bert", ["cls.predictions.transform"]),
    ("distilbert", ["vocab_transform", "vocab_layer_norm"]),
])  # fmt: skip
def test_what_stands_before_the_vocabulary_is_the_head(card: str, wanted: list[str]) -> None:
    model = skeleton(ModelSpec(card=card), "masked_lm", 0)
    found = [name for name in head_names(model) if [*model.get_submodule(name).parameters()]]
    assert found == wanted


def test_loss_counts_hidden_tokens_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parents[2])
    model = load_model(ModelSpec(card="smoke_bert"), "masked_lm", 0, 0)
    (batch,) = batches(folder).micro_batches(torch.arange(8), 8, draw=(0, 0))
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    losses, correct = task("masked_lm").losses(logits, batch)
    assert len(losses) == len(correct) == task("masked_lm").units(batch) == int((batch["labels"] != IGNORED).sum())
    theirs = model(**batch).loss
    assert losses.mean().item() == pytest.approx(theirs.item(), rel=1e-6)
