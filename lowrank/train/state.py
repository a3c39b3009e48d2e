"""Where a run stands."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lowrank.evaluate.score import Score
from lowrank.train.observer import Row


@dataclass
class State:
    """Where a run stands; everything that a checkpoint holds beside model, optimizer and parts."""

    step: int = 0
    seconds: float = 0.0
    """Training only: evaluation and checkpoints are not counted. Of a step that runs take together, an equal share."""
    together: int = 1
    """Most runs that took a step together with this one, itself included."""
    tokens: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    """One row per step: step, epoch, lr, train_loss; val_loss and val_accuracy where they were taken."""
    best_val_loss: float | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    diverged_at: int | None = None
    cut: int | None = None
    """Examples of a forward pass where memory forced fewer than the run asks for."""
    unfit: bool = False
    """Memory ran out, and nothing could be cut any smaller."""
    observed: dict[str, list[Row]] = field(default_factory=dict)
    """Observer -> what it has seen so far."""

    @property
    def cause(self) -> str | None:
        """Why the run ended early, or None."""
        if self.unfit:
            return f"out of memory after step {self.step}, with the smallest micro-batches"
        return None if self.diverged_at is None else f"the loss was not finite at step {self.diverged_at}"

    @property
    def status(self) -> str:
        """How the run ended."""
        return "failed" if self.unfit else "ok" if self.diverged_at is None else "diverged"

    def share(self, seconds: float, runs: int) -> None:
        """Counts this run's share of a step that so many runs took together."""
        self.seconds += seconds / runs
        self.together = max(self.together, runs)

    def record(self, losses: list[float]) -> None:
        """Writes the losses of the last steps into the history, up to the first that is not finite."""
        for index, loss in enumerate(losses, len(self.history) - len(losses)):
            if not math.isfinite(loss):
                self.history[index]["train_loss"] = None
                self.diverged_at = self.step = self.history[index]["step"]
                del self.history[index + 1 :]
                for rows in self.observed.values():
                    rows[:] = [row for row in rows if row["step"] < self.step]
                return
            self.history[index]["train_loss"] = loss

    def judge(self, result: Score) -> bool:
        """Writes an evaluation into the history; says whether it is the best so far."""
        if not math.isfinite(result.loss):
            self.diverged_at = self.step
            return False
        self.history[-1] |= {"val_loss": result.loss, "val_accuracy": result.accuracy}
        best = self.best_val_loss is None or result.loss < self.best_val_loss
        if best:
            self.best_val_loss = result.loss
        return best
