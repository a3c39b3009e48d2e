"""A run's step on real tensors with random weights, and what torch's allocator counts of it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from benchmarks.device import device, now
from lowrank.cards import data_card
from lowrank.measure.step import Step
from lowrank.measure.storages import model_tensors, storage_bytes, tensors_in
from lowrank.methods.chain import Chain
from lowrank.models.load import skeleton
from lowrank.recompute import checkpoint_blocks
from lowrank.spec import RunSpec
from lowrank.tasks import Batch, forward, task


class MeasuredRun:
    """What a run's steps take; nothing is fetched.

    Args:
        spec: the run; a micro-batch is what its step sees.
    """

    def __init__(self, spec: RunSpec) -> None:
        labels = len(data_card(spec.data.card).labels)
        shapes = skeleton(spec.model, spec.task, labels)
        torch.manual_seed(0)
        self.model = _with_numbers(shapes, getattr(torch, spec.model.dtype))
        if spec.model.gradient_checkpointing:
            checkpoint_blocks(self.model)
        chain, asked = Chain.build(spec.chain).attach(self.model), task(spec.task)
        self.optimizer = chain.optimizer(spec.train)
        chain.schedule(spec.train, 10)
        self.spec, self.labels, self.task = spec, labels, asked
        self.config: Any = shapes.config
        self.batch = self._batch(spec.train.micro_batch_size or spec.train.batch_size)

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return asked.loss(model, batch) / max(1, asked.units(batch))

        self.step = Step(self.model, chain, self.optimizer, self.batch, loss, spec.train.precision)

    def _batch(self, rows: int) -> dict[str, Tensor]:
        return {name: tensor.to(device()) for name, tensor in self._on_cpu(rows).items()}

    def _on_cpu(self, rows: int) -> dict[str, Tensor]:
        spec, length = self.spec, self.spec.data.max_length
        if hasattr(self.config, "image_size"):
            side = self.config.image_size
            pixels = torch.randn(rows, self.config.num_channels, side, side)
            return {"pixel_values": pixels, "labels": torch.randint(self.labels, (rows,))}
        ids = torch.randint(5, 50, (rows, length))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if spec.task == "classification":
            return {**batch, "labels": torch.randint(self.labels, (rows,))}
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
        """Seconds of steps by the benchmarks' clock, after two that warm up."""
        return _seconds(self.step.take, rounds)

    def eval_seconds(self, rows: int, rounds: int) -> list[float]:
        """Seconds of a batch of an evaluation, likewise."""
        batch = self._batch(rows)

        def score() -> None:
            self.task.losses(forward(scored, batch), batch)

        with self.step.chain.eval_mode() as scored, torch.no_grad(), self.step.autocast():
            return _seconds(score, rounds)


def _seconds(act: Callable[[], None], rounds: int) -> list[float]:
    act()
    act()
    found = []
    for _ in range(rounds):
        began = now()
        act()
        found.append(now() - began)
    return found


def _with_numbers(shapes: Any, dtype: torch.dtype) -> nn.Module:
    """A model of these shapes with random weights, made where it will lie and as narrow as it will be."""
    standard = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device():
            model: nn.Module = type(shapes)(shapes.config)
    finally:
        torch.set_default_dtype(standard)
    return model.to(dtype).train()
