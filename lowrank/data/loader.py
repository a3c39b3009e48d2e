"""A split as a task sees it: rows in, batches out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from lowrank.data import batches
from lowrank.files import MANIFEST, read_json
from lowrank.spec import DataSpec


class TaskBatches:
    """Batches of one split for one task.

    Args:
        split: the memory-mapped rows.
        spec: how long an example may be and how it is padded.
        task: name of the task, which decides the labels.
        pad_id: the token that fills up a row.
    """

    def __init__(self, split: batches.Split, spec: DataSpec, task: str, pad_id: int) -> None:
        self.split, self.spec, self.task, self.pad_id = split, spec, task, pad_id

    @property
    def rows(self) -> int:
        """Examples in the split."""
        return len(self.split)

    def order(self, seed: int, epoch: int) -> Tensor:
        """The rows in the order of that epoch: a pure function of seed and epoch."""
        return batches.order(self.rows, seed, epoch)

    def by_length(self) -> Tensor:
        """The rows from short to long, ties in row order."""
        return torch.argsort(self.split.lengths, stable=True)

    def micro_batches(self, rows: Tensor, size: int) -> Iterator[dict[str, Tensor]]:
        """Batches of at most `size` of the rows, in order."""
        for chunk in rows.split(size):
            yield batches.batch(
                self.split,
                chunk,
                pad=self.spec.pad,
                max_length=self.spec.max_length,
                pad_id=self.pad_id,
                task=self.task,
            )


def open_splits(prepared: Path, spec: DataSpec, task: str) -> dict[str, TaskBatches]:
    """The splits of a prepared data folder, by name."""
    manifest = read_json(prepared / MANIFEST)
    return {
        name: TaskBatches(batches.Split(prepared / f"{name}.safetensors"), spec, task, manifest["pad_id"])
        for name in ("train", "validation", "test")
    }
