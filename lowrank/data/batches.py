"""Prepared splits as memory maps, their order, and batches of them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lowrank.data.masking import Draw, Masking
from lowrank.errors import IntegrityError
from lowrank.tasks import IGNORED


class Split:
    """One prepared split. The arrays are mapped, not read: opening costs no memory.

    Attributes:
        tokens: (tokens,) int32, all rows end to end.
        offsets: (rows + 1,) int64, where each row starts.
        labels: (rows,) int64 for classification and questions, else None.
        prompts: (rows,) int64 for instructions, how many tokens of a row are its prompt, else None.

    Raises:
        IntegrityError: the file is missing, cut off, or not in this form.
    """

    def __init__(self, file: Path) -> None:
        try:
            with safe_open(file, framework="pt") as arrays:
                self.tokens: Tensor = arrays.get_tensor("tokens")
                self.offsets: Tensor = arrays.get_tensor("offsets")
                there = set(arrays.keys())
                self.labels: Tensor | None = arrays.get_tensor("labels") if "labels" in there else None
                self.prompts: Tensor | None = arrays.get_tensor("prompts") if "prompts" in there else None
        except (OSError, SafetensorError) as error:
            raise IntegrityError(f"{file}: not a prepared split ({error})") from None
        self.file = file
        if self.offsets[0] != 0 or self.offsets[-1] > len(self.tokens) or (self.lengths < 1).any():
            raise IntegrityError(
                f"{file}: offsets {self.offsets[0]} to {self.offsets[-1]} do not cut its {len(self.tokens)} tokens "
                "into rows; `prepare` wrote something else"
            )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row, (rows,) int64."""
        return self.offsets.diff()


def order(rows: int, seed: int, epoch: int) -> Tensor:
    """The rows of an epoch in the order they are trained on: (rows,) int64.

    A pure function of its arguments, so a resumed run sees what an uninterrupted one would have seen.

    Args:
        rows: how many there are.
        seed: the run's seed.
        epoch: counted from 0.
    """
    # SeedSequence mixes both numbers: no two (seed, epoch) share an order, as seed + epoch would.
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(rows))


def by_length_within(order: Tensor, lengths: Tensor, window: int) -> Tensor:
    """An order in which rows of similar length follow each other, so that little is padded: (rows,) int64.

    Each `window` of the order is sorted, longest first; what a window holds stays a matter of chance.

    Source: the length-grouped sampler of transformers, whose windows are 50 batches.
    Departs from: that sampler, which also puts the longest row of all first.

    Args:
        order: (rows,) int64, the order of an epoch.
        lengths: (rows,) int64, tokens of each row.
        window: rows that are sorted together.
    """
    return torch.cat([rows[lengths[rows].argsort(descending=True, stable=True)] for rows in order.split(window)])


def blocks(split: Split, length: int, seed: int, step: int, size: int) -> Tensor:
    """Where the blocks of a step begin: (size,) int64, drawn with replacement from all places of the text.

    A pure function of its arguments, as `order` is.

    Args:
        split: the text.
        length: tokens of a block.
        seed: the run's seed.
        step: counted from 0.
        size: how many blocks.

    Raises:
        IntegrityError: the text is shorter than a block.
    """
    places = len(split.tokens) - length + 1
    if places < 1:
        raise IntegrityError(f"{split.file}: has {len(split.tokens)} tokens, fewer than one block of {length}")
    # The first word keeps these draws apart from those of `order`, which are seeded with (seed, epoch).
    return torch.from_numpy(np.random.default_rng([1, seed, step]).integers(0, places, size))


def block_batch(split: Split, starts: Tensor, length: int) -> dict[str, Tensor]:
    """Blocks of a text as tensors that a transformers model takes; nothing is padded.

    Args:
        split: the text.
        starts: (B,) int64, from `blocks`.
        length: T, tokens of a block.

    Returns:
        input_ids, attention_mask and labels, each (B, T) int64; the loss shifts labels by one.
    """
    input_ids = split.tokens[starts[:, None] + torch.arange(length)].long()
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": input_ids.clone()}


def batch(
    split: Split,
    indices: Tensor,
    *,
    pad: Literal["longest", "max_length"],
    max_length: int,
    pad_id: int,
    task: str,
    masking: Masking | None = None,
    draw: Draw = None,
    train_on_inputs: bool = True,
) -> dict[str, Tensor]:
    """Rows of a split as tensors that a transformers model takes.

    Args:
        split: where the rows are.
        indices: (B,) int64, which rows.
        pad: to the longest row of the batch, or to `max_length`.
        max_length: T at most, in tokens; longer rows are cut.
        pad_id: what fills up short rows.
        task: `classification`: labels (B,) int64. `causal_lm`: labels (B, T) int64, -100 at padding; the model
            or the loss shifts them by one. `masked_lm`: labels (B, T) int64, -100 where nothing was hidden.
        masking: hides tokens, for masked_lm.
        draw: seed and epoch that the masks are drawn from; None where they never change.
        train_on_inputs: causal_lm: whether prompts are predicted too; else their labels are -100.

    Returns:
        input_ids (B, T) int64, attention_mask (B, T) int64 and labels.

    Raises:
        IntegrityError: classification of a split without labels.
    """
    starts = split.offsets[indices]
    lengths = (split.offsets[indices + 1] - starts).clamp(max=max_length)
    columns = torch.arange(max_length if pad == "max_length" else int(lengths.max()))
    real = columns < lengths[:, None]  # (B, T)
    input_ids = torch.full(real.shape, pad_id)
    input_ids[real] = split.tokens[(starts[:, None] + columns)[real]].long()
    if masking is not None:
        input_ids, labels = masking(input_ids, real, indices, draw)
    elif task == "causal_lm":
        hidden = ~real
        if not train_on_inputs and split.prompts is not None:
            hidden |= columns < split.prompts[indices][:, None]
        labels = input_ids.masked_fill(hidden, IGNORED)
    elif split.labels is not None:
        labels = split.labels[indices]
    else:
        raise IntegrityError(f"{split.file}: has no labels, which task {task!r} needs")
    return {"input_ids": input_ids, "attention_mask": real.long(), "labels": labels}
