"""Chains under the Hugging Face Trainer."""

from lowrank.trainer.chain_trainer import ChainCallback, ChainTrainer
from lowrank.trainer.same_run import LoopBatches, loop_trainer, optimizers

__all__ = ["ChainCallback", "ChainTrainer", "LoopBatches", "loop_trainer", "optimizers"]
