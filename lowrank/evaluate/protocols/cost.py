"""What a method costs: bytes and seconds of a training step, and of inference before and after merging."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.errors import ConfigError
from lowrank.evaluate.clock import clock, seconds
from lowrank.evaluate.protocol import Outcome, Protocol, Subject
from lowrank.measure import FlopCounter, PeakMemory
from lowrank.measure.step import Step
from lowrank.strict import PositiveInt, Strict
from lowrank.tasks import forward, task


class Cost(Protocol):
    """Steps and inference on batches of the run's own data.

    `parameter_bytes`, `gradient_bytes`, `optimizer_bytes`, `saved_activation_bytes`: storages that a training step
    at the run's batch size keeps; `training_bytes`: their sum, with what a block takes that is computed again.
    `peak_memory_bytes`: highest memory over the steps less what there was before (CUDA: highest allocation).
    `step_time_s`: median seconds of a training step; `samples_per_s` its examples a second. `latency_s`: seconds of a
    forward pass of one example, `throughput_per_s`: examples a second at the evaluation's batch size; both again with
    `merged_` in front, after everything is folded into plain modules. `inference_flops` and `merged_inference_flops`:
    operations of that batch. `clock`: `cpu` says that seconds are those the process computed, `wall` that they are the
    clock's.

    A method whose merge has nothing to fold gives the same model twice.
    """

    name = "cost"
    spoils = True  # it trains on, and merges

    class Options(Strict):
        """How often it is measured."""

        steps: PositiveInt = 3
        """Training steps under the clock."""
        repeats: PositiveInt = 5
        """Forward passes under the clock."""

    metrics = (
        "parameter_bytes",
        "gradient_bytes",
        "optimizer_bytes",
        "saved_activation_bytes",
        "training_bytes",
        "peak_memory_bytes",
        "flops_forward",
        "flops_backward",
        "step_time_s",
        "samples_per_s",
        "latency_s",
        "throughput_per_s",
        "inference_flops",
        "merged_latency_s",
        "merged_throughput_per_s",
        "merged_inference_flops",
        "clock",
    )

    def measure(self, subject: Subject) -> Outcome:
        """Inference first, then steps, which train on, then inference again on the merged model.

        Raises:
            ConfigError: the model is merged already.
        """
        if subject.chain.merged:
            raise ConfigError("protocol cost: the model is merged already; it measures before and after merging itself")
        before = self._inference(subject)
        training = self._training(subject)
        subject.chain.merge()
        merged = {f"merged_{name}": value for name, value in self._inference(subject).items()}
        return Outcome(metrics={**training, **before, **merged, "clock": clock(subject.device)})

    def _inference(self, subject: Subject) -> dict[str, float]:
        one, many = batch_of(subject, 1), batch_of(subject, subject.spec.batch_size)
        timed = functools.partial(seconds, device=subject.device, repeats=self.options.repeats, poll=subject.poll)
        with subject.chain.eval_mode() as model:
            latency = timed(lambda: forward(model, one))
            throughput = len(many["labels"]) / timed(lambda: forward(model, many))
            with FlopCounter() as counter:
                forward(model, many)
        return {"latency_s": latency, "throughput_per_s": throughput, "inference_flops": counter.get_total_flops()}

    def _training(self, subject: Subject) -> dict[str, Any]:
        train, chain, asked = subject.run.train, subject.chain, task(subject.run.task)
        batch = batch_of(subject, train.batch_size)
        length = train.steps or (train.epochs or 1) * math.ceil(subject.batches.rows / train.batch_size)
        chain.schedule(train, length)  # parts learn how long a run is; what follows is past its end

        def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
            return asked.loss(model, batch) / max(1, asked.units(batch))

        subject.model.train()
        step = Step(subject.model, chain, chain.optimizer(train), batch, loss, train.precision, number=length)
        with PeakMemory(subject.device) as peak:
            step_s = seconds(step.take, subject.device, self.options.steps, subject.poll)
        facts = step.account()
        kept = ("parameter_bytes", "gradient_bytes", "optimizer_bytes", "saved_activation_bytes")
        return {
            **{name: facts[name] for name in (*kept, "flops_forward", "flops_backward")},
            "training_bytes": sum(facts[name] for name in (*kept, "recomputed_activation_bytes")),
            "peak_memory_bytes": peak.rss_growth_bytes if subject.device.type == "cpu" else peak.cuda_bytes,
            "step_time_s": step_s,
            "samples_per_s": len(batch["labels"]) / step_s,
        }


def batch_of(subject: Subject, rows: int) -> dict[str, Tensor]:
    """The first rows of the split as one batch, at most as many as there are, on the model's device."""
    count = min(rows, subject.batches.rows)
    (batch,) = subject.batches.micro_batches(torch.arange(count), count)
    return {name: tensor.to(subject.device) for name, tensor in batch.items()}
