"""Perplexity as pre-training scripts report it: the mean of batch means, with a counter that may begin at one."""

from __future__ import annotations

import math
from typing import Literal

import torch

from lowrank.evaluate.protocol import Outcome, Protocol, Subject, not_finite
from lowrank.evaluate.score import perplexity
from lowrank.strict import PositiveInt, Strict
from lowrank.tasks import forward, task


class BatchMean(Protocol):
    """Batches in row order until `target_tokens` are seen; each batch counts the same, however many tokens it has.

    loss = (l_1 + ... + l_N) / (N + counter_start),   perplexity = exp(loss)

    l_n is the mean loss of batch n over its predicted tokens. With `counter_start: 1` every loss is N / (N + 1) of
    the mean, so the perplexity is p^(N / (N + 1)): too low, and the more so the fewer batches there are.
    `mean_perplexity` is that of the same batches counted rightly, exp((l_1 + ... + l_N) / N).

    Source: the evaluation of the scripts that pre-train LLaMA on C4 for ReLoRA, GaLore and VeLoRA.
    """

    name = "batch_mean"
    metrics = ("loss", "perplexity", "mean_perplexity", "batches", "tokens")

    class Options(Strict):
        """How batches are counted, and how many there are."""

        counter_start: Literal[0, 1] = 1
        """What the counter of batches holds before the first one; 1 as published."""
        target_tokens: PositiveInt = 10_000_000
        """No batch is begun once so many input tokens, padding left out, were seen."""

    @torch.no_grad()
    def measure(self, subject: Subject) -> Outcome:
        """Scores batches of `batch_size` rows; a loss that is not finite is an outcome too."""
        asked, spec = task(subject.run.task), subject.spec
        total, batches, tokens = 0.0, 0, 0
        rows = torch.arange(subject.batches.rows if spec.rows is None else min(spec.rows, subject.batches.rows))
        with subject.chain.eval_mode() as model:
            for batch in subject.batches.micro_batches(rows, spec.batch_size):
                if tokens > self.options.target_tokens:
                    break
                subject.poll()
                moved = {key: tensor.to(subject.device) for key, tensor in batch.items()}
                losses, _ = asked.losses(forward(model, moved), moved)
                total += losses.double().mean().item()
                batches += 1
                tokens += int(batch["attention_mask"].sum())
        loss = total / (batches + self.options.counter_start)
        if not math.isfinite(loss):
            return not_finite(subject)
        found = {"loss": loss, "perplexity": perplexity(loss), "mean_perplexity": perplexity(total / batches)}
        return Outcome({**found, "batches": batches, "tokens": tokens})
