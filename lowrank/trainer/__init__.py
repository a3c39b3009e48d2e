"""Chains under the Hugging Face Trainer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowrank.trainer.chain_trainer import ChainCallback, ChainTrainer
    from lowrank.trainer.same_run import LoopBatches, loop_trainer, optimizers

_PLACES = {
    "ChainCallback": "chain_trainer",
    "ChainTrainer": "chain_trainer",
    "LoopBatches": "same_run",
    "loop_trainer": "same_run",
    "optimizers": "same_run",
}

__all__ = ["ChainCallback", "ChainTrainer", "LoopBatches", "loop_trainer", "optimizers"]


def __getattr__(name: str) -> Any:
    # Looked up when it is used: a plan asks for the protocol below, and needs no transformers for it.
    if name not in _PLACES:
        raise AttributeError(f"module 'lowrank.trainer' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lowrank.trainer.{_PLACES[name]}"), name)
