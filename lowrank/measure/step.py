"""Accounts for one training step: what it keeps, what it computes, how long it takes."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowrank.measure.flops import FlopCounter
from lowrank.measure.memory import PeakMemory
from lowrank.measure.storages import (
    counts,
    gradients,
    model_tensors,
    optimizer_bytes,
    saved_tensors,
    storage_bytes,
    tensors_in,
)
from lowrank.methods.chain import Chain
from lowrank.recompute import checkpointed_blocks
from lowrank.strict import Strict

Batch = Mapping[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]
"""(model, batch) -> scalar loss."""
Call = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
"""A block and what it is called with."""


class Accounting(Strict):
    """One training step in numbers. A number that was not taken is None, never an estimate."""

    origin: Literal["measured", "predicted"]
    device: str
    parameters: int
    """Values of the model with its adapters; shared ones once, coded ones as the values they stand for."""
    trainable_parameters: int
    parameter_bytes: int
    """Storages of parameters, buffers and quantisation state."""
    gradient_bytes: int
    """Storages of the gradients after one backward pass."""
    optimizer_bytes: int
    """Storages of the optimizer's state."""
    saved_activation_bytes: int
    """Storages that autograd holds at the end of the forward pass, without those of `parameter_bytes`."""
    recomputed_activation_bytes: int
    """What the backward pass holds beside them while it computes a block again, of the block that takes most; 0 without
    gradient checkpointing."""
    flops_forward: int
    flops_backward: int
    peak_rss_bytes: int | None = None
    """Highest resident memory of the process over the steps."""
    peak_rss_growth_bytes: int | None = None
    """That, less what was resident before the first step, the model included."""
    cuda_peak_bytes: int | None = None
    """Highest allocation of the CUDA allocator over the steps."""
    step_time_s: float | None = None
    """Median wall time of an optimizer step, forward and backward included."""


def model_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The loss that a transformers model computes from a batch with labels."""
    loss: Tensor = model(**batch).loss
    return loss


class Step:
    """One optimizer step of a chain on one batch, as the training loop takes it.

    Args:
        model: with `chain` attached.
        chain: the method.
        optimizer: of the chain.
        batch: tensors on the model's device.
        loss: (model, batch) -> scalar.
        precision: `bf16` runs the forward pass under autocast.
        number: of the next step, counted from 0, for parts whose work depends on it.
    """

    def __init__(
        self,
        model: nn.Module,
        chain: Chain,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        loss: Loss = model_loss,
        precision: Literal["fp32", "bf16"] = "fp32",
        number: int = 0,
    ) -> None:
        self.model, self.chain, self.optimizer, self.batch = model, chain, optimizer, batch
        self.loss, self.precision, self.number = loss, precision, number
        self.device = next(model.parameters()).device

    def forward(self) -> Tensor:
        """The scalar loss, with everything that parts do before it."""
        with self.autocast():
            self.chain.before_step([self.batch], self.number)
        self.chain.before_forward(self.batch, self.number)
        with self.autocast():
            loss = self.loss(self.model, self.batch)
            penalty = self.chain.penalty()
        return loss if penalty is None else loss + penalty

    def take(self) -> None:
        """Forward, backward, optimizer, and what parts do after it."""
        self.forward().backward()
        self.update()

    def update(self) -> None:
        """What follows the backward pass."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.number += 1
        self.chain.after_step(self.optimizer, self.number)

    def account(self) -> dict[str, Any]:
        """One step, watched.

        Returns:
            The fields of `Accounting` that need neither a clock nor a peak.
        """
        kept = list(model_tensors(self.model))
        with self._calls() as calls, FlopCounter() as forward, saved_tensors() as saved:
            loss = self.forward()
        saved_activation_bytes = storage_bytes(saved.held(), exclude=kept)
        recomputed = [self._recomputed(*call, kept) for call in calls]
        with FlopCounter() as backward:
            loss.backward()
        gradient_bytes = storage_bytes(gradients(self.model))
        facts = counts(self.model)
        self.update()
        return {
            **facts,
            "parameter_bytes": storage_bytes(kept),
            "gradient_bytes": gradient_bytes,
            "optimizer_bytes": optimizer_bytes(self.optimizer),
            "saved_activation_bytes": saved_activation_bytes,
            "recomputed_activation_bytes": max(recomputed, default=0),
            "flops_forward": forward.get_total_flops(),
            "flops_backward": backward.get_total_flops(),
        }

    @contextlib.contextmanager
    def _calls(self) -> Iterator[list[Call]]:
        """What the blocks that are computed again are called with in the forward pass that has a backward pass."""
        calls: list[Call] = []

        def note(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if torch.is_grad_enabled():
                calls.append((block, args, kwargs))

        hooks = [block.register_forward_pre_hook(note, with_kwargs=True) for block in checkpointed_blocks(self.model)]
        yield calls
        for hook in hooks:
            hook.remove()

    def _recomputed(self, block: Any, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Sequence[Tensor]) -> int:
        """Bytes that a block saves when it is computed again, without its inputs, which are saved anyway."""
        block.gradient_checkpointing = False
        with self.autocast(), saved_tensors() as saved:
            output = block(*args, **kwargs)
        block.gradient_checkpointing = True
        found = storage_bytes(saved.held(), exclude=[*kept, *tensors_in([args, kwargs])])
        del output  # until here it keeps what was saved
        return found

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bf16 autocast where the run asks for it."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


def measure_step(
    model: nn.Module,
    chain: Chain,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    *,
    steps: int = 3,
    loss: Loss = model_loss,
    precision: Literal["fp32", "bf16"] = "fp32",
    first_step: int = 0,
) -> Accounting:
    """Trains for some steps and accounts for them.

    One step to warm up, `steps` under the clock, then one pass under the counters, so that counting
    slows nothing that is timed. The peaks cover the steps. The model is trained by this: measure a
    model that is not needed afterwards.

    Args:
        model: with `chain` attached, in training mode.
        chain: the method.
        optimizer: of the chain, as `chain.optimizer(train)` gives it.
        batch: tensors on the model's device, such as input_ids (B, T), attention_mask (B, T), labels.
        steps: how many are timed.
        loss: (model, batch) -> scalar; the model's own by default.
        precision: `bf16` runs the forward pass under autocast.
        first_step: number of the first step, for parts whose work depends on it.

    Returns:
        An `Accounting` with every field that this device can give.
    """
    step = Step(model, chain, optimizer, batch, loss, precision, first_step)
    times = []
    with PeakMemory(step.device) as peak:
        step.take()
        for _ in range(steps):
            began = _now(step.device)
            step.take()
            times.append(_now(step.device) - began)
    return Accounting(
        origin="measured",
        device=step.device.type,
        peak_rss_bytes=peak.rss_bytes,
        peak_rss_growth_bytes=peak.rss_growth_bytes,
        cuda_peak_bytes=peak.cuda_bytes,
        step_time_s=statistics.median(times),
        **step.account(),
    )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
