"""How much memory training runs together would take, from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank.cards import data_card, model_card
from lowrank.measure import predict_step
from lowrank.models.load import skeleton
from lowrank.spec import RunSpec
from lowrank.train.loop import EVAL_BATCH_SIZE

GB = 10**9

START = 500_000_000
"""Bytes of a process that has torch and a transformers class, before its first model. Measured on a CPU."""

BASES = 3
"""Copies of the frozen weights at the end: the stack's, those of the member that is written, and what it began with."""

COPIES = 8
"""Copies of what trains: a member's own and the stack's, gradients twice, the update, two moments, the best so far."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of a training job: `shared + K * member` for K runs together.

    Attributes:
        shared: the process, the frozen base and what an evaluation holds.
        member: what trains, with its optimizer, and what its forward pass keeps for the backward pass.
    """

    shared: int
    member: int

    def together(self, members: int) -> int:
        """Bytes of so many runs."""
        return self.shared + members * self.member

    def members(self, memory: int) -> int:
        """How many runs fit into so many bytes; 0 where not one does."""
        return max(0, memory - self.shared) // self.member


def footprint(spec: RunSpec, labels: int) -> Footprint:
    """Predicts one training step of a run on the meta device, and counts what a job holds beside it.

    Args:
        spec: the run.
        labels: classes of its data.
    """
    rows = spec.train.micro_batch_size or spec.train.batch_size
    found = predict_step(
        lambda: skeleton(spec.model, spec.task, labels), spec.chain, _batch(spec, rows), precision=spec.train.precision
    )
    trained = found.gradient_bytes
    kept = found.saved_activation_bytes + found.recomputed_activation_bytes
    # An evaluation keeps nothing for a backward pass; what it holds at once is less than a step of so many rows keeps.
    evaluation = kept * EVAL_BATCH_SIZE // rows
    return Footprint(START + BASES * (found.parameter_bytes - trained) + evaluation, COPIES * trained + kept)


def tokens_a_row(spec: RunSpec) -> int:
    """Tokens of an example, at most; of an image, its patches and one more."""
    image = data_card(spec.data.card).image
    if image is None:
        return spec.data.max_length
    height, width = (spec.data.image_size or side for side in (image.height, image.width))
    patch = int(str(model_card(spec.model.card).config.get("patch_size", 16)))
    return (height // patch) * (width // patch) + 1


def _batch(spec: RunSpec, rows: int) -> dict[str, Tensor]:
    """A batch of the largest size that the run sees; its mask, which has no values, hides something."""
    image = data_card(spec.data.card).image
    if image is not None:
        height, width = (spec.data.image_size or side for side in (image.height, image.width))
        pixels = torch.zeros(rows, image.channels, height, width)
        return {"pixel_values": pixels, "labels": torch.zeros(rows, dtype=torch.int64)}
    ids = torch.zeros(rows, spec.data.max_length, dtype=torch.int64)
    labels = ids if spec.task.endswith("_lm") else ids[:, 0]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids, device="meta"), "labels": labels}
