"""The SuperReLoRA document's evaluation of a language model, with one switch for each of its defects."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from lowrank.data.documents import document_rows
from lowrank.errors import ConfigError
from lowrank.evaluate.protocol import Outcome, Protocol, Subject, not_finite
from lowrank.evaluate.score import perplexity
from lowrank.strict import PositiveInt, Strict
from lowrank.tasks import IGNORED, forward


class PublishedLm(Protocol):
    """Next-token loss of documents, each a row that is cut or padded to `max_length`.

    With all switches off: `loss` = sum of token losses / number of tokens, padding excluded, `perplexity` = exp(loss),
    `accuracy` = share of tokens predicted right, `units` = what the sum is divided by. `batch_loss` is the mean over
    batches of the mean loss, which the document's logs print; `pad_share` the share of padding among the labels.

    What the document's script did, each a switch:

    - `transposed`: its batches are lists of positions, stacked as (T, B), and turned only where T < B. So the model
      reads T "texts" of B tokens, which stand at one position of B unrelated documents.
    - `pads_in_labels`: padding is predicted too.
    - `divisor: published`: sum over batches of (mean loss x rows of the tensor) / tokens after the first column.

    Departs from: `score`, which takes the run's own rows and knows no padding in a text but that of its last row.
    """

    name = "published_lm"
    metrics = ("loss", "perplexity", "accuracy", "units", "batch_loss", "pad_share")

    class Options(Strict):
        """How long a row is, and the switches."""

        max_length: PositiveInt = 64
        transposed: bool = False
        pads_in_labels: bool = False
        divisor: Literal["tokens", "published"] = "tokens"

    @torch.no_grad()
    def measure(self, subject: Subject) -> Outcome:
        """Runs every batch once and sums up in the way that is asked for."""
        options = self.options
        losses, weighted, batches, predicted, real, right, padding = 0.0, 0.0, 0.0, 0, 0, 0, 0
        count = 0
        with subject.chain.eval_mode() as model:
            for batch in self._batches(subject):
                subject.poll()
                moved = {key: tensor.to(subject.device) for key, tensor in batch.items()}
                logits = forward(model, moved)[:, :-1].float()
                tokens, mask = moved["input_ids"][:, 1:], moved["attention_mask"][:, 1:].bool()
                labels = tokens if options.pads_in_labels else tokens.masked_fill(~mask, IGNORED)
                total = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
                wanted = int((labels != IGNORED).sum())
                losses, predicted, count = losses + total, predicted + wanted, count + 1
                batches += total / max(1, wanted)
                weighted += total / max(1, wanted) * len(labels)
                real += int(mask.sum())
                right += int(((logits.argmax(-1) == tokens) & mask).sum())
                padding += wanted - int(((labels != IGNORED) & mask).sum())
        loss = weighted / max(1, real) if options.divisor == "published" else losses / max(1, predicted)
        if not math.isfinite(loss):
            return not_finite(subject)
        return Outcome(
            metrics={
                "loss": loss,
                "perplexity": perplexity(loss),
                "accuracy": right / max(1, real),
                "units": real if options.divisor == "published" else predicted,
                "batch_loss": batches / max(1, count),
                "pad_share": padding / max(1, predicted),
            }
        )

    def _batches(self, subject: Subject) -> Iterator[dict[str, Tensor]]:
        """The documents in their order, as input_ids and attention_mask (B, T), or (T, B) under the defect."""
        source, size = subject.batches, subject.spec.batch_size
        if subject.run.task != "causal_lm":
            raise ConfigError(f"protocol {self.name}: scores task 'causal_lm', not {subject.run.task!r}")
        ids, mask = document_rows(source.split, self.options.max_length, source.pad_id, subject.spec.rows)
        for rows, real in zip(ids.split(size), mask.split(size), strict=True):
            turned = self.options.transposed and not len(rows.t()) < len(rows)
            yield {
                "input_ids": rows.t().contiguous() if turned else rows,
                "attention_mask": (real.t().contiguous() if turned else real).long(),
            }
