"""Memory that ran out, whoever says so."""

from __future__ import annotations

import gc

import torch


def ran_out(error: BaseException) -> bool:
    """Whether an error means that memory ran out: Python's own, an accelerator's, or that of torch on the host."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: " in str(error)
    )


def let_go() -> None:
    """Gives back what nobody uses any more, before the same is tried with less."""
    gc.collect()
    if torch.cuda.is_available():  # pragma: no cover - needs a GPU
        torch.cuda.empty_cache()
