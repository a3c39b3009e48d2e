"""The batches of K members side by side, and what belongs to each of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from lowrank.tasks import IGNORED, Batch

FILL = {"attention_mask": 0, "labels": IGNORED}
"""What fills up a shorter row of these; the tokenizer's padding fills the others."""


def join(batches: Sequence[Batch], pad_id: int) -> Batch:
    """The batches of K members as one, in member order: (K * B, ...), texts filled up to the longest.

    Args:
        batches: of equally many rows.
        pad_id: fills up token ids.
    """
    joined = {}
    for key, first in batches[0].items():
        tensors = [batch[key] for batch in batches]
        if first.ndim == 2:
            longest = max(tensor.shape[1] for tensor in tensors)
            fill = FILL.get(key, pad_id)
            tensors = [functional.pad(tensor, (0, longest - tensor.shape[1]), value=fill) for tensor in tensors]
        joined[key] = torch.cat(tensors)
    return joined


def sums(losses: Tensor, units: Sequence[int]) -> Tensor:
    """The sum of each member's unit losses: (K,).

    Args:
        losses: (units of all members,), one member after another.
        units: how many are each member's.
    """
    if len(set(units)) == 1:
        return losses.view(len(units), -1).sum(1)
    return torch.stack([own.sum() for own in losses.split(list(units))])


def totals(units: Sequence[Sequence[int]], device: torch.device) -> Tensor | int:
    """Each member's units over all micro-batches, at least 1: (K,), or a number for one run."""
    whole = [max(1, sum(own)) for own in zip(*units, strict=True)]
    return whole[0] if len(whole) == 1 else _sent(torch.tensor(whole), device)


def moved(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """A batch on the device, sent without waiting for what the device is at; a mask that hides nothing is left out.

    transformers reads such a mask in each forward pass to find that it needs none.
    """
    mask = batch.get("attention_mask")
    needless = mask is not None and bool(mask.all())
    return {key: _sent(tensor, device) for key, tensor in batch.items() if not (needless and key == "attention_mask")}


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    # From pageable memory a copy waits for all that the device was told before.
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
