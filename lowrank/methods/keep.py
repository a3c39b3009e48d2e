"""What a linear layer keeps of its input for the gradient of its weight.

`AdaptedLinear.keep` is None, or an object with the two methods of `Keep`. A part that computes a weight
gradient asks the two functions below, so that every such part works with every way of keeping.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Keep(Protocol):
    """A way of keeping."""

    def compress(self, x: Tensor) -> Tensor:
        """x (..., in) -> what is saved until the backward pass."""

    def weight_gradient(self, grad: Tensor, kept: Tensor) -> Tensor:
        """Gradient (N, out) and what was kept -> weight gradient (out, in)."""


def in_use(keep: Keep | None) -> Keep | None:
    """`keep` where a backward pass will follow; without gradients nothing has to be kept."""
    return keep if torch.is_grad_enabled() else None


def weight_gradient(keep: Keep | None, grad: Tensor, kept: Tensor) -> Tensor:
    """dW = grad^T x: (N, out), kept input -> (out, in), in the dtype of `grad`."""
    if keep is None:
        return grad.t() @ kept.reshape(-1, kept.shape[-1]).to(grad.dtype)
    return keep.weight_gradient(grad, kept)
