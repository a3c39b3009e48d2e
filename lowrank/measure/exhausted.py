"""Memory that ran out, whoever says so."""

from __future__ import annotations

import gc

import torch

_SAID = (
    "DefaultCPUAllocator: ",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""In a RuntimeError: of torch on the host, and of CUDA's libraries, whose memory torch does not hand out."""


def ran_out(error: BaseException) -> bool:
    """Whether an error means that memory ran out: Python's own, torch's, or that of a library."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)
    )


def let_go() -> None:
    """Gives back what nobody uses any more, before the same is tried with less."""
    gc.collect()
    if torch.cuda.is_available():  # pragma: no cover - needs a GPU
        torch.cuda.empty_cache()
