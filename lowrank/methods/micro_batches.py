"""The micro-batches of an optimizer step, put together again."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from lowrank.tasks import IGNORED


def drawing_apart(batch: Mapping[str, Tensor]) -> contextlib.AbstractContextManager[None]:
    """Around a forward pass beside the training: the random state is afterwards as it was, also where the batch lies.

    Other accelerators that this process could see are left alone.
    """
    device = next(iter(batch.values())).device
    return torch.random.fork_rng([] if device.type == "cpu" else [device])


def together(micro_batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The whole batch.

    Texts (B, T) that are shorter than the longest are padded on the right; labels there are ignored, and
    the attention mask hides it.
    """
    widths = {tensor.shape[1] for batch in micro_batches for tensor in batch.values() if tensor.ndim == 2}

    def widen(tensor: Tensor, key: str) -> Tensor:
        if tensor.ndim != 2:
            return tensor
        return functional.pad(tensor, (0, max(widths) - tensor.shape[1]), value=IGNORED if key == "labels" else 0)

    batches = [dict(batch) for batch in micro_batches]
    if len(widths) > 1:
        batches = [{"attention_mask": torch.ones_like(batch["input_ids"]), **batch} for batch in batches]
    return {key: torch.cat([widen(batch[key], key) for batch in batches]) for key in batches[0]}
