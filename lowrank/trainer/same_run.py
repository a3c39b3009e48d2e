"""The run that our loop would train, under the Trainer: the same order, optimizer, schedule and losses."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import TrainingArguments

from lowrank.data.loader import TaskBatches
from lowrank.methods.chain import Chain
from lowrank.spec import TrainSpec
from lowrank.tasks import Task
from lowrank.train.schedules import schedule
from lowrank.trainer.chain_trainer import ChainTrainer


def optimizers(
    chain: Chain, train: TrainSpec, total_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """The optimizer and the schedule of our loop, for the Trainer's argument `optimizers`.

    Args:
        chain: attached to the model.
        train: lr, betas, eps, weight decay, schedule, warm-up.
        total_steps: optimizer steps of the run.
    """
    optimizer = chain.optimizer(train)
    factor = chain.schedule(train, total_steps) or schedule(train, total_steps)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class LoopBatches(Dataset[dict[str, Tensor]]):
    """The micro-batches of our loop in its order, each an item of its own.

    Args:
        batches: the training split.
        train: batch size and micro-batch size.
        seed: of the order.
    """

    def __init__(self, batches: TaskBatches, train: TrainSpec, seed: int) -> None:
        self.batches, self.train, self.seed, self.epoch = batches, train, seed, 0
        self.micro = train.micro_batch_size or train.batch_size
        self.per_step = math.ceil(train.batch_size / self.micro)
        self.steps = math.ceil(batches.rows / train.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """The Trainer says which epoch it begins."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Micro-batches of an epoch; its last step may have fewer."""
        if self.batches.whole_batches:
            return self.steps * self.per_step
        full, rest = divmod(self.batches.rows, self.train.batch_size)
        return full * self.per_step + math.ceil(rest / self.micro)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        step, part = divmod(index, self.per_step)
        cut = self.batches.training_batch(self.seed, self.epoch * self.steps + step, self.train.batch_size, self.micro)
        return next(itertools.islice(cut, part, None))


class LoopTrainer(ChainTrainer):
    """A Trainer over `LoopBatches`."""

    def get_train_dataloader(self) -> Any:
        """The loader draws a seed for workers; from a generator of its own, so that dropout's draws stay the loop's."""
        loader = super().get_train_dataloader()
        loader.base_dataloader.generator = torch.Generator()
        return loader


def loop_trainer(
    model: nn.Module,
    chain: Chain,
    task: Task,
    train: TrainSpec,
    batches: TaskBatches,
    seed: int,
    folder: Path,
    **more: Any,
) -> LoopTrainer:
    """A Trainer for the run that `Loop(model, chain, task, train, batches, ...)` would train.

    Args:
        model: with `chain` attached.
        chain: the method.
        task: loss and units.
        train: every setting of the run; `eval_every` and `select` are the loop's own.
        batches: the training split.
        seed: decides the order of the data and every draw in training.
        folder: where the Trainer writes.
        more: further `TrainingArguments`, such as `save_steps`.
    """
    data = LoopBatches(batches, train, seed)
    length = {"max_steps": train.steps} if train.steps is not None else {"num_train_epochs": float(train.epochs or 0)}
    steps = train.steps or (train.epochs or 0) * math.ceil(batches.rows / train.batch_size)
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "seed": seed,
        "per_device_train_batch_size": 1,  # an item is a micro-batch
        "gradient_accumulation_steps": data.per_step,
        "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        "max_grad_norm": train.clip_norm or 0.0,
        "bf16": train.precision == "bf16",
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        **length,
    }
    trainer = LoopTrainer(
        model=model,
        chain=chain,
        task=task,
        args=TrainingArguments(**{**settings, **more}),
        train_dataset=data,
        data_collator=_only,
        optimizers=optimizers(chain, train, steps),
    )
    torch.manual_seed(seed)
    return trainer


def _only(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    (item,) = items
    return item
