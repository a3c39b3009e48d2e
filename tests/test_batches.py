"""Batches: every token in its place, padding nowhere else, order a pure function of seed and epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lowrank.data import loader
from lowrank.data.batches import Split, batch, block_batch, blocks, order
from lowrank.data.loader import TaskBatches
from lowrank.data.tokens import end_to_end
from lowrank.errors import IntegrityError
from lowrank.spec import DataSpec

Pad = Literal["longest", "max_length"]
PAD = 7

ragged = st.lists(st.lists(st.integers(10, 99), min_size=1, max_size=12), min_size=1, max_size=8)


def split_of(folder: Path, rows: list[list[int]], labels: list[int] | None = None) -> Split:
    tokens, offsets = end_to_end(rows)
    arrays: dict[str, np.ndarray] = {"tokens": tokens, "offsets": offsets}
    if labels is not None:
        arrays["labels"] = np.array(labels, dtype=np.int64)
    save_file(arrays, folder / "train.safetensors")
    return Split(folder / "train.safetensors")


@given(rows=ragged, pad=st.sampled_from(["longest", "max_length"]), limit=st.integers(1, 14), data=st.data())
def test_a_batch_is_its_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[int]], pad: Pad, limit: int, data: st.DataObject
) -> None:
    split = split_of(tmp_path_factory.mktemp("split"), rows, list(range(len(rows))))
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=5))
    found = batch(split, torch.tensor(chosen), pad=pad, max_length=limit, pad_id=PAD, task="classification")
    cut = [rows[index][:limit] for index in chosen]
    width = limit if pad == "max_length" else max(map(len, cut))
    assert found["input_ids"].tolist() == [row + [PAD] * (width - len(row)) for row in cut]
    assert found["attention_mask"].tolist() == [[1] * len(row) + [0] * (width - len(row)) for row in cut]
    assert found["labels"].tolist() == chosen
    assert {tensor.dtype for tensor in found.values()} == {torch.int64}


def test_language_models_predict_every_token_but_padding(tmp_path: Path) -> None:
    # The first row holds the pad token as text, which is predicted: the mask decides, not the value.
    split = split_of(tmp_path, [[10, PAD, 11], [12]])
    found = batch(split, torch.tensor([0, 1]), pad="longest", max_length=8, pad_id=PAD, task="causal_lm")
    assert found["labels"].tolist() == [[10, PAD, 11], [12, -100, -100]]
    assert found["input_ids"].tolist() == [[10, PAD, 11], [12, PAD, PAD]]


def test_rows_and_lengths(tmp_path: Path) -> None:
    split = split_of(tmp_path, [[1, 2, 3], [4], [5, 6]])
    assert len(split) == 3
    assert split.lengths.tolist() == [3, 1, 2]


def test_a_split_without_labels_cannot_be_classified(tmp_path: Path) -> None:
    split = split_of(tmp_path, [[1], [2]])
    with pytest.raises(IntegrityError) as caught:
        batch(split, torch.tensor([0]), pad="longest", max_length=8, pad_id=PAD, task="classification")
    assert str(caught.value) == f"{split.file}: has no labels, which task 'classification' needs"


@pytest.mark.parametrize("content", [None, b"", b"\x10\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_file_that_is_no_split_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "train.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(IntegrityError) as caught:
        Split(file)
    assert str(caught.value).startswith(f"{file}: not a prepared split (")


def test_opening_a_split_does_not_read_it(tmp_path: Path) -> None:
    size = 16 * 2**20
    tokens = np.zeros(size, dtype=np.int32)
    save_file({"tokens": tokens, "offsets": np.array([0, size])}, tmp_path / "train.safetensors")
    process = psutil.Process()
    before = process.memory_info().rss
    split = Split(tmp_path / "train.safetensors")
    assert process.memory_info().rss - before < tokens.nbytes / 4
    assert split.tokens.shape == (size,)


@given(st.integers(1, 200), st.integers(0, 2**31), st.integers(0, 100))
def test_order_is_a_permutation_and_a_pure_function(rows: int, seed: int, epoch: int) -> None:
    torch.manual_seed(0)
    first = order(rows, seed, epoch)
    torch.manual_seed(1)
    assert torch.equal(first, order(rows, seed, epoch))
    assert first.dtype == torch.int64
    assert sorted(first.tolist()) == list(range(rows))


def test_every_seed_and_epoch_has_its_own_order() -> None:
    orders = {tuple(order(50, seed, epoch).tolist()) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_order_is_the_same_on_every_machine_and_version() -> None:
    """Resuming and reproducing rest on it; a library that changes it must be noticed."""
    assert order(10, 0, 0).tolist() == [4, 6, 2, 7, 3, 5, 9, 0, 8, 1]
    assert order(10, 1, 2).tolist() == [8, 5, 6, 0, 9, 1, 4, 3, 7, 2]


@pytest.mark.parametrize("grouped", [False, True])
def test_an_epoch_is_ordered_once_for_each_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grouped: bool) -> None:
    split = split_of(tmp_path, [[10 + i] * (1 + i % 4) for i in range(7)])
    spec = DataSpec(card="smoke_text", group_by_length=grouped)
    kept = TaskBatches(split, spec, "causal_lm", PAD)
    asked = [(seed, step) for step in (0, 1, 3, 4, 2) for seed in (0, 1)]  # 4 steps an epoch; the last goes back
    drawn: list[tuple[int, int]] = []
    monkeypatch.setattr(loader.batches, "order", lambda rows, *draw: drawn.append(draw) or order(rows, *draw))
    found = [next(kept.training_batch(*at, 2, 2))["input_ids"].tolist() for at in asked]
    assert drawn == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 0), (1, 0)]
    anew = [next(TaskBatches(split, spec, "causal_lm", PAD).training_batch(*at, 2, 2)) for at in asked]
    assert found == [batch["input_ids"].tolist() for batch in anew], "as a run that goes on from there would see them"


@given(
    tokens=st.integers(8, 200), length=st.integers(2, 8), seed=st.integers(0, 3), step=st.integers(0, 9), data=st.data()
)
def test_blocks_are_pieces_of_the_text(
    tmp_path_factory: pytest.TempPathFactory, tokens: int, length: int, seed: int, step: int, data: st.DataObject
) -> None:
    split = split_of(tmp_path_factory.mktemp("split"), [list(range(tokens))])
    size = data.draw(st.integers(1, 6))
    starts = blocks(split, length, seed, step, size)
    found = block_batch(split, starts, length)
    assert found["input_ids"].tolist() == [list(range(s, s + length)) for s in starts.tolist()]
    assert torch.equal(found["labels"], found["input_ids"])
    assert found["attention_mask"].all()
    # What came before does not matter: a resumed run draws the same.
    assert torch.equal(starts, blocks(split, length, seed, step, size))


def test_blocks_reach_every_place_and_differ_between_steps_and_seeds(tmp_path: Path) -> None:
    split = split_of(tmp_path, [list(range(10))])
    drawn = {(seed, step): blocks(split, 4, seed, step, 300) for seed in range(2) for step in range(2)}
    assert all(set(starts.tolist()) == set(range(7)) for starts in drawn.values())
    assert len({tuple(starts.tolist()) for starts in drawn.values()}) == 4
    with pytest.raises(IntegrityError, match="has 10 tokens, fewer than one block of 11"):
        blocks(split, 11, 0, 0, 1)


def test_offsets_that_do_not_fit_the_tokens_are_named(tmp_path: Path) -> None:
    arrays = {"tokens": np.arange(4, dtype=np.int32), "offsets": np.array([0, 3, 9])}
    save_file(arrays, tmp_path / "train.safetensors")
    with pytest.raises(IntegrityError, match=r"train.safetensors: offsets 0 to 9 do not cut its 4 tokens into rows"):
        Split(tmp_path / "train.safetensors")
