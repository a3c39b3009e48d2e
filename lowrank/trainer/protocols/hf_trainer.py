"""A run once more under the Hugging Face Trainer, beside our own loop."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank.evaluate.protocol import Outcome, Protocol, Subject
from lowrank.methods.chain import Chain
from lowrank.models.load import load_run
from lowrank.tasks import task
from lowrank.train.loop import Loop


class HfTrainer(Protocol):
    """Trains the run's question twice from its base, by our loop and by the Trainer, and compares each step's loss.

    `max_loss_difference` = max over steps of |loss of our loop - loss of the Trainer|; `train_loss` is the mean over
    steps that the Trainer itself reports, `train_time_s` its runtime; `steps_per_s` and `samples_per_s` follow.
    The records hold both losses of each step. Evaluations and observers take no part.

    The evaluation names the training split: `split: train`.
    """

    name = "hf_trainer"
    metrics = ("max_loss_difference", "train_loss", "train_time_s", "steps_per_s", "samples_per_s")

    def measure(self, subject: Subject) -> Outcome:
        """Runs both; the run's own weights are left alone."""
        ours = self._by_loop(subject)
        theirs, facts = self._by_trainer(subject)
        if len(ours) != len(theirs):
            return Outcome(cause=f"the loss was not finite at step {min(len(ours), len(theirs))}")
        steps, seconds = len(theirs), facts["train_runtime"]
        both = enumerate(zip(ours, theirs, strict=True), 1)
        rows = [{"step": step, "loop": a, "trainer": b, "difference": a - b} for step, (a, b) in both]
        return Outcome(
            metrics={
                "max_loss_difference": max(abs(row["difference"]) for row in rows),
                "train_loss": facts["train_loss"],
                "train_time_s": seconds,
                "steps_per_s": steps / seconds,
                "samples_per_s": steps * subject.run.train.batch_size / seconds,
            },
            records=rows,
        )

    def _fresh(self, subject: Subject) -> tuple[nn.Module, Chain]:
        labels = getattr(subject.model.config, "num_labels", 0)
        return load_run(subject.run, labels, subject.device)

    def _by_loop(self, subject: Subject) -> list[float]:
        run, (model, chain) = subject.run, self._fresh(subject)
        train = run.train.model_copy(update={"observe": {}})
        split = subject.batches
        loop = Loop(model, chain, task(run.task), train, split, split, run.seed, subject.device)
        model.train()
        for step in range(loop.total_steps):
            subject.poll()
            loop.take_step(step)
        loop.settle()
        return [row["train_loss"] for row in loop.state.history if row["train_loss"] is not None]

    def _by_trainer(self, subject: Subject) -> tuple[list[float], dict[str, Any]]:
        from lowrank.trainer.same_run import loop_trainer  # transformers' Trainer: for who trains, not who plans

        run, (model, chain) = subject.run, self._fresh(subject)
        with tempfile.TemporaryDirectory() as folder:
            trainer = loop_trainer(
                model,
                chain,
                task(run.task),
                run.train,
                subject.batches,
                run.seed,
                Path(folder),
                use_cpu=subject.device.type == "cpu",
                disable_tqdm=True,
            )
            facts = trainer.train().metrics
        subject.poll()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        return [loss for loss in losses if torch.isfinite(torch.tensor(loss))], facts
