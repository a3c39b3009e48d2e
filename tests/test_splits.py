"""Splitting and cutting: nothing is lost, nothing is in two places, and the order of files does not matter."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lowrank.data.readers import SPLITS
from lowrank.data.rows import Row
from lowrank.data.splits import split_rows
from lowrank.data.tokens import end_to_end, windows
from lowrank.spec import DataSpec

rows_with_repeats = st.lists(st.integers(0, 60), min_size=12, max_size=80).map(
    lambda numbers: [Row(f"text {number}", 0, None) for number in numbers]
)


@given(rows_with_repeats, st.integers(0, 5), st.randoms())
def test_splits_never_share_a_text_and_ignore_the_order_of_files(
    rows: list[Row], seed: int, order: random.Random
) -> None:
    spec = DataSpec(card="x", split_seed=seed)
    splits = split_rows(rows, spec)
    assert sorted(row.text for split in splits.values() for row in split) == sorted(row.text for row in rows)
    seen = [{row.text for row in split} for split in splits.values()]
    assert sum(map(len, seen)) == len(set().union(*seen))
    shuffled = order.sample(rows, len(rows))
    again = split_rows(shuffled, spec)
    assert {name: sorted(row.text for row in split) for name, split in again.items()} == {
        name: sorted(row.text for row in split) for name, split in splits.items()
    }


def test_fractions_seeds_and_limits() -> None:
    rows = [Row(f"text {number}", 0, None) for number in range(1000)]
    splits = split_rows(rows, DataSpec(card="x"))
    assert [len(splits[name]) for name in SPLITS] == [720, 80, 200]
    assert split_rows(rows, DataSpec(card="x", split_seed=1))["test"] != splits["test"]
    few = split_rows(rows, DataSpec(card="x", train_rows=100))["train"]
    assert len(few) == 100
    assert set(few) < set(splits["train"])
    assert few == sorted(few, key=rows.index), "rows keep the order of their file"


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=9), st.integers(2, 7))
def test_ragged_rows_and_windows_keep_every_token(pieces: list[list[int]], length: int) -> None:
    tokens, offsets = end_to_end(pieces)
    assert [row.tolist() for row in np.split(tokens, offsets[1:-1])] == pieces
    cuts = windows(len(tokens), length)
    assert cuts[0] == 0
    assert set(np.diff(cuts)[:-1].tolist()) <= {length}
    assert len(tokens) - cuts[-1] == (len(tokens) > length and len(tokens) % length == 1)
