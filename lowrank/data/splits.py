"""Splitting rows into train, validation and test, the same on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from lowrank.data.readers import SPLITS
from lowrank.data.rows import Row
from lowrank.errors import ConfigError
from lowrank.spec import DataSpec


def split_rows(rows: Sequence[Row], spec: DataSpec) -> dict[str, list[Row]]:
    """Divides the rows, and keeps as many of each split as the spec asks for.

    Where the data has a split of its own, it is used. Else the test split is carved off the training
    rows first, then the validation split off what is left. Which rows are chosen depends on
    SHA-256(seed, text) alone: neither on the order of the files nor on Python's hash. Equal texts stay
    together, so that no test text was trained on, and so do the rows of one group. Within a split, rows keep
    the order of the files.

    Raises:
        ConfigError: a split with fewer rows than two, or than the spec asks for.
    """
    own: dict[str, list[int]] = {name: [] for name in SPLITS}
    for index, row in enumerate(rows):
        own[row.split or "train"].append(index)
    ranks = [_rank(spec.split_seed, row.key) for row in rows]
    # Rows of one group share a rank here, so that no cut divides them.
    ranks_of_groups = [_rank(spec.split_seed, row.group or row.key) for row in rows]
    train = sorted(own["train"], key=lambda index: (ranks_of_groups[index], index))
    for name, fraction in (("test", spec.test_fraction), ("validation", spec.validation_fraction)):
        if not own[name]:
            cut = _cut(train, ranks_of_groups, round(fraction * len(train)))
            own[name], train = train[:cut], train[cut:]
    own["train"] = train
    kept = {}
    for name, limit in zip(SPLITS, (spec.train_rows, spec.validation_rows, spec.test_rows), strict=True):
        chosen = sorted(own[name], key=lambda index: (ranks[index], index))
        if limit is not None and limit > len(chosen):
            raise ConfigError(
                f"data {spec.card!r}: {name}_rows is {limit}; allowed: up to {len(chosen)}, the rows of that split"
            )
        kept[name] = [rows[index] for index in sorted(chosen[:limit])]
    return kept


def _rank(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()


def _cut(order: Sequence[int], ranks: Sequence[bytes], size: int) -> int:
    """The first place at or after `size` that does not divide equal texts."""
    while 0 < size < len(order) and ranks[order[size]] == ranks[order[size - 1]]:
        size += 1
    return size


def repeats_across(splits: dict[str, list[Row]]) -> int:
    """Rows of validation and test whose text is also a training text; more than 0 only in data's own splits."""
    trained = {row.key for row in splits["train"]}
    return sum(row.key in trained for name in ("validation", "test") for row in splits[name])
