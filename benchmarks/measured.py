"""A run's step on real tensors with random weights, and what torch's allocator counts of it."""

from __future__ import annotations

import gc
import time

import torch
from torch import Tensor, nn
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from lowrank.cards import data_card
from lowrank.measure.step import Step
from lowrank.measure.storages import model_tensors, storage_bytes, tensors_in
from lowrank.methods.chain import Chain
from lowrank.models.load import skeleton
from lowrank.spec import RunSpec
from lowrank.tasks import Batch, task


class MeasuredRun:
    """What a run's steps take; nothing is fetched.

    Args:
        spec: the run; a micro-batch is what its step sees.
    """

    def __init__(self, spec: RunSpec) -> None:
        labels = len(data_card(spec.data.card).labels)
        shapes = skeleton(spec.model, spec.task, labels)
        torch.manual_seed(0)
        self.model: nn.Module = type(shapes)(shapes.config).to(getattr(torch, spec.model.dtype)).train()
        chain, asked = Chain.build(spec.chain).attach(self.model), task(spec.task)
        self.optimizer = chain.optimizer(spec.train)
        chain.schedule(spec.train, 10)
        self.batch = self._batch(spec, labels)

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return asked.loss(model, batch) / max(1, asked.units(batch))

        self.step = Step(self.model, chain, self.optimizer, self.batch, loss, spec.train.precision)

    @staticmethod
    def _batch(spec: RunSpec, labels: int) -> dict[str, Tensor]:
        rows, length = spec.train.micro_batch_size or spec.train.batch_size, spec.data.max_length
        ids = torch.randint(5, 50, (rows, length))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if spec.task == "classification":
            return {**batch, "labels": torch.randint(labels, (rows,))}
        hidden = length if spec.task == "causal_lm" else round(spec.data.mask_fraction * length)
        return {**batch, "labels": ids.masked_fill(torch.arange(length) >= hidden, -100)}

    def peak_bytes(self) -> int:
        """Most bytes that torch's allocator holds during a step, weights and optimizer state included."""
        gc.collect()
        held = [*model_tensors(self.model), *tensors_in(list(self.optimizer.state.values()))]
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            self.step.take()
        results = profiled.profiler.kineto_results
        pending, changes = list(results.experimental_event_tree()), []
        while pending:
            event = pending.pop()
            pending += event.children
            if event.typed[0] == _EventType.Allocation:
                changes.append((event.start_time_ns, event.typed[1].alloc_size))
        alive = peak = 0
        for _, change in sorted(changes, key=lambda entry: entry[0]):
            alive += change
            peak = max(peak, alive)
        return storage_bytes(held) + peak

    def seconds(self, rounds: int) -> list[float]:
        """CPU seconds of steps, after two that warm up."""
        self.step.take()
        self.step.take()
        found = []
        for _ in range(rounds):
            began = time.process_time()
            self.step.take()
            found.append(time.process_time() - began)
        return found
