"""What a run holds and computes, from its spec alone: nothing is fetched, allocated or computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.cards import data_card
from lowrank.measure.predict import faked, told
from lowrank.measure.step import Step
from lowrank.measure.storages import counts, gradients, model_tensors, optimizer_bytes, storage_bytes, tensors_in
from lowrank.measure.tally import Tally, Work
from lowrank.measure.weights import kept_trunk
from lowrank.methods.chain import Chain
from lowrank.models.load import skeleton
from lowrank.spec import RunSpec
from lowrank.strict import Strict
from lowrank.tasks import forward, task


class Forecast(Strict):
    """One run, before it starts. Bytes are those of the device that computes; a micro-batch is what one pass takes."""

    parameters: int
    trainable_parameters: int
    parameter_bytes: int
    """Parameters, buffers and quantisation state."""
    gradient_bytes: int
    optimizer_bytes: int
    kept_bytes: int
    """Copies of weights that a run keeps: its base, to compare with, and its best, where it is judged by them."""
    peak_bytes: int
    """Most bytes alive at once, all of the above included."""
    eval_peak_bytes: int
    """The most in an evaluation alone."""
    changed_bytes: int
    """Every tensor that differs from the base, as it is saved."""
    micro_batch: Work
    """Kernels of the forward and backward pass of a micro-batch."""
    update: Work
    """Kernels of what follows in a step: the optimizer and the parts."""
    eval_batch: Work
    """Kernels of a forward pass over a batch of an evaluation."""

    @property
    def activation_bytes(self) -> int:
        """What is alive at the peak beside weights, gradients, optimizer state and copies."""
        held = self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes + self.kept_bytes
        return max(0, self.peak_bytes - held)


def forecast(spec: RunSpec, total_steps: int, eval_rows: int) -> Forecast:
    """Takes a step and an evaluation batch over tensors without numbers.

    Every example is as long as the spec allows. Where parts act differently later in a run, work is that of a step in
    its middle, and the peak that of either. The update is taken twice: optimizers make their state in the first, which
    the peak of the forward and backward pass counts as there. What a part does every so many steps, a merge or a new
    projection, is in the work only by chance.

    Kernels are those that torch chooses on a CPU. A run of no steps is its evaluation.

    Args:
        spec: the run.
        total_steps: its length.
        eval_rows: rows of an evaluation batch.

    Raises:
        ConfigError: the chain does not fit the model.
    """
    labels = len(data_card(spec.data.card).labels)
    chain, asked = Chain.build(spec.chain), task(spec.task)
    with torch.device("meta"):
        model = skeleton(spec.model, spec.task, labels)
    chain.attach(model.train())

    def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return asked.loss(model, batch) / max(1, asked.units(batch))

    with faked(model):
        optimizer = chain.optimizer(spec.train)
        chain.schedule(spec.train, total_steps)
        kept: list[Any] = [kept_trunk(model)]
        if spec.train.select == "best":
            kept.append({name: tensor.clone() for name, tensor in chain.changed().items()})
        batch = _batch(model, spec, spec.train.micro_batch_size or spec.train.batch_size)
        step = Step(model, chain, optimizer, batch, loss, spec.train.precision)

        def held() -> list[Tensor]:
            return [*model_tensors(model), *tensors_in(kept), *tensors_in(list(optimizer.state.values()))]

        trains = total_steps > 0
        with Tally(held()) as first:
            if trains:
                step.forward().backward()
        middle = first
        if trains and any(hasattr(part, "before_forward") for part in chain.parts):
            optimizer.zero_grad()
            step.number = total_steps // 2
            with Tally(held()) as middle:
                step.forward().backward()
        given = {parameter: parameter.grad for parameter in model.parameters()}
        gradient_bytes = storage_bytes(gradients(model))
        with Tally([*held(), *gradients(model)]) as making:  # an optimizer makes its state in the first update
            if trains:
                step.update()
        for parameter, gradient in given.items():
            parameter.grad = gradient
        del given
        with Tally([*held(), *gradients(model)]) as update:
            if trains:
                step.update()
        state_bytes = optimizer_bytes(optimizer)
        evaluation = _batch(model, spec, eval_rows)
        with chain.eval_mode() as scored, torch.no_grad(), step.autocast(), Tally(held()) as evaluated:
            asked.losses(forward(scored, evaluation), evaluation)
        return Forecast(
            **counts(model),
            parameter_bytes=storage_bytes(model_tensors(model)),
            gradient_bytes=gradient_bytes,
            optimizer_bytes=state_bytes,
            kept_bytes=storage_bytes(tensors_in(kept)),
            peak_bytes=max(
                *(tally.peak_bytes + state_bytes for tally in (first, middle) if trains),
                *(tally.peak_bytes for tally in (making, update, evaluated)),
            ),
            eval_peak_bytes=evaluated.peak_bytes,
            changed_bytes=storage_bytes(chain.changed().values()),
            micro_batch=middle.work,
            update=update.work,
            eval_batch=evaluated.work,
        )


def _batch(model: Any, spec: RunSpec, rows: int) -> dict[str, Tensor]:
    """A batch of rows that are as long as they may be, nothing padded; of hidden tokens, the share that is."""
    if model.main_input_name == "pixel_values":
        side, channels = model.config.image_size, model.config.num_channels
        inputs = {"pixel_values": torch.empty(rows, channels, side, side)}
    else:
        ids = torch.zeros(rows, spec.data.max_length, dtype=torch.int64)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = torch.zeros(rows, dtype=torch.int64)
    if spec.task != "classification":
        labels = torch.zeros(rows, spec.data.max_length, dtype=torch.int64)
    if spec.task == "masked_lm" and spec.data.mask_fraction:
        labels[:, round(spec.data.mask_fraction * spec.data.max_length) :] = -100
    return {name: told(tensor) for name, tensor in {**inputs, "labels": labels}.items()}
