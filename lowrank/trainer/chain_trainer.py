"""Chains under the Hugging Face Trainer: every hook of a part at the Trainer's own moments.

    chain = Chain.build(options).attach(model)
    ChainTrainer(model=model, chain=chain, args=TrainingArguments(...), train_dataset=...).train()

A callback sees neither the batch nor the loss, so `ChainCallback` (what follows an optimizer step, and
checkpoints) is enough for some parts only, and `ChainTrainer` brings the rest.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from lowrank.errors import ConfigError
from lowrank.methods.chain import Chain
from lowrank.spec import TrainSpec
from lowrank.tasks import Task
from lowrank.train import checkpoint

CHAIN_STATE = "chain"
"""The folder, inside a checkpoint of the Trainer, with the state that parts keep beside the weights."""

PLAIN_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")
"""What `TrainingArguments.optim` may say: the chain decides the optimizer, and AdamW is its default."""


class ChainCallback(TrainerCallback):  # type: ignore[misc]
    """Lets the parts act after each optimizer step, and saves their state with each checkpoint.

    Args:
        chain: attached to the model that is trained.
    """

    def __init__(self, chain: Chain) -> None:
        self.chain = chain

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """After the optimizer, the schedule and zero_grad, before evaluation and saving."""
        self.chain.after_step(getattr(optimizer, "optimizer", optimizer), state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes `<checkpoint>/chain`, as safetensors and JSON."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}" / CHAIN_STATE
        checkpoint.save(folder, state.global_step, self.chain.state_dict(), {"chain": self.chain.name})


class ChainTrainer(Trainer):  # type: ignore[misc]
    """The Trainer with a chain.

    Without `optimizers`, the optimizer is the chain's, from the learning rate, betas, eps and weight decay of
    `args` (decay falls on every trained parameter, as in our loop, not on matrices only), and the schedule is
    the Trainer's unless a part brings one.

    Args:
        chain: attached to `model`.
        task: its loss, summed over the batch of an optimizer step and divided once; None keeps the Trainer's.
        options: what `transformers.Trainer` takes.

    Raises:
        ConfigError: the chain is not attached to this model, more than one device, or another `optim`.
    """

    optimizer: torch.optim.Optimizer | None
    lr_scheduler: Any

    def __init__(self, *, chain: Chain, task: Task | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.chain, self.task = chain, task
        if chain.model is not self.model or chain.merged:
            raise ConfigError(f"ChainTrainer: chain {chain.name} is not attached to this {type(self.model).__name__}")
        if max(self.args.n_gpu, self.args.world_size) > 1:
            raise ConfigError(
                f"ChainTrainer: {max(self.args.n_gpu, self.args.world_size)} devices; allowed: one, since the parts "
                "act on one copy of the model (set CUDA_VISIBLE_DEVICES)"
            )
        if self.optimizer is None and self.args.optim not in PLAIN_OPTIMIZERS:
            raise ConfigError(
                f"ChainTrainer: optim {self.args.optim.value!r}, but the chain brings the optimizer; "
                f"allowed: {', '.join(PLAIN_OPTIMIZERS)}"
            )
        if task is not None:
            self.loss_is_scaled_for_ga = True
        self.add_callback(ChainCallback(chain))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The chain's optimizer, where none was given."""
        if self.optimizer is None:
            self.optimizer = self.chain.optimizer(self._settings())
        optimizer: torch.optim.Optimizer = self.optimizer
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The schedule of the part that owns it, or the Trainer's."""
        if self.lr_scheduler is None:
            factor = self.chain.schedule(self._settings(), num_training_steps)
            if factor is not None:
                self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.create_optimizer(), factor)
                self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def _settings(self) -> TrainSpec:
        """What the parts ask of the training settings, from the Trainer's arguments."""
        args = self.args
        steps = args.max_steps if args.max_steps > 0 else None
        return TrainSpec(
            lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            weight_decay=args.weight_decay,
            steps=steps,
            epochs=None if steps else max(1, math.ceil(args.num_train_epochs)),
            batch_size=args.per_device_train_batch_size * args.gradient_accumulation_steps,
            micro_batch_size=args.per_device_train_batch_size,
        )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The micro-batches of an optimizer step, which the parts see before any of them is run."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = [self._prepare_inputs(batch) for batch in batches]
        if batches:
            self.model.train()  # which the Trainer does later, in its training step
            with self.accelerator.autocast():
                self.chain.before_step(batches, self.state.global_step)
        if self.task is not None:
            items = sum(self.task.units(batch) for batch in batches)
        return batches, items

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of a micro-batch; after the last one the parts' penalty, before clipping."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        penalty = self.chain.penalty() if self.accelerator.sync_gradients else None
        if penalty is not None:
            self.accelerator.backward(penalty)
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The task's loss, or the Trainer's; in training the parts see the batch first."""
        if model.training:
            self.chain.before_forward(inputs, self.state.global_step)
        if self.task is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        units = num_items_in_batch if model.training else self.task.units(inputs)
        if not return_outputs:
            with self.accelerator.autocast():
                return self.task.loss(model, inputs) / max(1, units)
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        losses, _ = self.task.losses(outputs.logits, inputs)
        return losses.sum() / max(1, units), outputs

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluation sees what the parts say it sees."""
        with self.chain.eval_mode():
            return super().evaluation_loop(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Weights, and the parts' state.

        Raises:
            ConfigError: a checkpoint of another chain, or of a Trainer without one.
        """
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        state = checkpoint.load_newest(Path(resume_from_checkpoint) / CHAIN_STATE, {"chain": self.chain.name})
        if state is None:
            raise ConfigError(f"{resume_from_checkpoint}: holds no state of chain {self.chain.name}")
        self.chain.load_state_dict(state)
