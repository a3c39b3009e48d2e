"""How far a weight that is stored otherwise lies from the one it stands for."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Drift(NamedTuple):
    """How far a stored weight lies from the weight it stands for."""

    max_abs: float
    """max |stored - meant|."""
    relative: float
    """||stored - meant|| / ||meant||, Frobenius."""


def drift_of(stored: Tensor, meant: Tensor) -> Drift:
    """The distance of two weights of one shape, in float32."""
    error = stored.float() - meant.float()
    norm = meant.float().norm().clamp(min=torch.finfo(torch.float32).tiny)
    return Drift(error.abs().max().item(), (error.norm() / norm).item())
