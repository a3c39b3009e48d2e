"""Loss, perplexity and accuracy of a split."""

from __future__ import annotations

import math

from lowrank.evaluate.protocol import Outcome, Protocol, Subject, not_finite
from lowrank.evaluate.score import score
from lowrank.tasks import task


class ScoreProtocol(Protocol):
    """Every unit of the split once, as training counts its loss: sum over units / number of units.

    `loss` (nats), `perplexity` = exp(loss), `accuracy` (share), `f1` (macro, where units are examples), `units`.
    """

    name = "score"
    metrics = ("loss", "accuracy", "perplexity", "f1", "units")
    steps = 5

    def measure(self, subject: Subject) -> Outcome:
        """Scores the split; a loss that is not finite is an outcome too."""
        spec, asked = subject.spec, task(subject.run.task)
        with subject.chain.eval_mode() as model:
            result = score(
                model, asked, subject.batches, spec.batch_size, subject.device, rows=spec.rows, poll=subject.poll
            )
        if not math.isfinite(result.loss):
            return not_finite(subject)
        return Outcome(
            metrics={
                "loss": result.loss,
                "perplexity": result.perplexity,
                "accuracy": result.accuracy,
                "f1": result.f1,
                "units": result.units,
            },
            items={
                "loss": [round(value, 6) for value in result.losses.tolist()],
                "correct": [int(value) for value in result.correct.tolist()],
            },
        )
