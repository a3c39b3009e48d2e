"""A split as a task sees it: rows in, batches out."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowrank.data import batches
from lowrank.data.images import ImageSplit, image_batch
from lowrank.data.masking import Draw, Masking, masking
from lowrank.data.readers import SPLITS
from lowrank.errors import IntegrityError
from lowrank.files import MANIFEST, check_seal
from lowrank.images import ImageFormat
from lowrank.spec import DataSpec
from lowrank.strict import parse

WINDOW_BATCHES = 50
"""Batches whose rows are sorted together where a run groups by length."""


class TaskBatches:
    """Batches of one split for one task.

    Args:
        split: the memory-mapped rows.
        spec: how long an example may be and how it is padded.
        task: name of the task, which decides the labels.
        pad_id: the token that fills up a row.
        masking: hides tokens, for masked_lm.
    """

    pad_id = 0  # images have no tokens

    def __init__(
        self, split: batches.Split, spec: DataSpec, task: str, pad_id: int, masking: Masking | None = None
    ) -> None:
        self.split, self.spec, self.task, self.pad_id, self.masking = split, spec, task, pad_id, masking

    @property
    def rows(self) -> int:
        """Examples in the split."""
        return len(self.split)

    def order(self, seed: int, epoch: int) -> Tensor:
        """The rows in the order of that epoch: a pure function of seed and epoch."""
        return batches.order(self.rows, seed, epoch)

    @functools.cached_property
    def _latest(self) -> dict[int, tuple[tuple[int, int], Tensor]]:
        """Seed -> epoch and size of a batch, and the order that a step of them asked for last."""
        return {}

    def _order(self, seed: int, epoch: int, size: int) -> Tensor:
        """The order that batches of `size` are cut from; kept while steps ask for it: it is one for a whole epoch."""
        kept, order = self._latest.get(seed, (None, torch.empty(0)))
        if kept != (epoch, size):
            order = self.order(seed, epoch)
            if self.spec.group_by_length:
                order = batches.by_length_within(order, self.split.lengths, WINDOW_BATCHES * size)
            self._latest[seed] = (epoch, size), order
        return order

    def by_length(self) -> Tensor:
        """The rows from short to long, ties in row order."""
        return torch.argsort(self.split.lengths, stable=True)

    @property
    def whole_batches(self) -> bool:
        """Whether every batch of training is full: blocks never run out, rows do at the end of an epoch."""
        return self.spec.sample == "blocks"

    def training_batch(self, seed: int, step: int, size: int, micro_size: int) -> Iterator[dict[str, Tensor]]:
        """What a step trains on, cut into micro-batches: a pure function of seed and step.

        Args:
            seed: the run's seed.
            step: counted from 0.
            size: examples of the batch.
            micro_size: examples of a micro-batch.
        """
        if self.spec.sample == "blocks":
            for starts in batches.blocks(self.split, self.spec.max_length, seed, step, size).split(micro_size):
                yield batches.block_batch(self.split, starts, self.spec.max_length)
            return
        epoch, index = divmod(step, math.ceil(self.rows / size))
        rows = self._order(seed, epoch, size)[index * size : (index + 1) * size]
        yield from self.micro_batches(rows, micro_size, draw=(seed, epoch))

    def micro_batches(self, rows: Tensor, size: int, draw: Draw = None) -> Iterator[dict[str, Tensor]]:
        """Batches of at most `size` of the rows, in order.

        Args:
            rows: (n,) int64.
            size: rows of a batch.
            draw: seed and epoch that random masks depend on; None in evaluation, where they never change.
        """
        for chunk in rows.split(size):
            yield batches.batch(
                self.split,
                chunk,
                pad=self.spec.pad,
                max_length=self.spec.max_length,
                pad_id=self.pad_id,
                task=self.task,
                masking=self.masking,
                draw=draw,
                train_on_inputs=self.spec.train_on_inputs,
            )


class ImageBatches(TaskBatches):
    """Batches of one split of images.

    Args:
        split: the memory-mapped rows.
        spec: what they are resized to.
        image: their normalisation.
    """

    def __init__(self, split: ImageSplit, spec: DataSpec, image: ImageFormat) -> None:
        self.images, self.spec, self.image = split, spec, image

    @property
    def rows(self) -> int:
        """Images in the split."""
        return len(self.images)

    def by_length(self) -> Tensor:
        """The rows in their order: all are of one size."""
        return torch.arange(self.rows)

    def micro_batches(self, rows: Tensor, size: int, draw: Draw = None) -> Iterator[dict[str, Tensor]]:
        """Batches of at most `size` of the rows, in order; nothing in them is random."""
        for chunk in rows.split(size):
            yield image_batch(self.images, chunk, self.image, self.spec.image_size)


def open_splits(prepared: Path, spec: DataSpec, task: str) -> dict[str, TaskBatches]:
    """The splits of a prepared data folder, by name.

    Raises:
        IntegrityError: a file is missing, cut off, or has other bytes than were written; names it.
    """
    state = [(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in sorted(prepared.glob("*"))]
    manifest = _checked(prepared.resolve(), tuple(state))
    if manifest["task"] == "image":
        image = parse(ImageFormat, manifest["image"], f"{prepared / MANIFEST}: image")
        return {name: ImageBatches(ImageSplit(prepared / f"{name}.safetensors", image), spec, image) for name in SPLITS}
    hides = masking(manifest, spec.mask_fraction, prepared) if task == "masked_lm" else None
    return {
        name: TaskBatches(batches.Split(prepared / f"{name}.safetensors"), spec, task, manifest["pad_id"], hides)
        for name in SPLITS
    }


@functools.cache
def _checked(prepared: Path, state: tuple[tuple[str, int, int], ...]) -> dict[str, Any]:
    """The manifest, after hashing the files; once for each `state` (name, time, size of each) of the folder."""
    try:
        return check_seal(prepared)
    except IntegrityError as error:
        raise IntegrityError(f"{error}; to prepare it again: rm -r {prepared} && snakemake --cores all") from None
