"""What a linear layer keeps of its input for the gradient of its weight.

`AdaptedLinear.keep` is None, or an object with the two methods of `Keep`. A part that computes a weight
gradient asks the functions below, so that every such part works with every way of keeping. An input that
says what it was made from (`made_from`) is not kept at all where `keep` is None: its sources are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Keep(Protocol):
    """A way of keeping."""

    def compress(self, x: Tensor) -> Tensor:
        """x (..., in) -> what is saved until the backward pass."""

    def weight_gradient(self, grad: Tensor, kept: Tensor) -> Tensor:
        """Gradient (N, out), what was kept -> weight gradient (out, in); of K members (K, N, out) -> (K, out, in)."""


class Origin(NamedTuple):
    """What a tensor can be made from again."""

    make: Callable[..., Tensor]
    """sources -> the tensor, bit for bit."""
    sources: tuple[Tensor, ...]
    version: int
    """Of the tensor when it was made; a later write in place makes the origin void."""


def in_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in that dtype; `Tensor.to` takes a microsecond to find that there is nothing to do, ten times a layer."""
    return x if x.dtype == dtype else x.to(dtype)


def made_from(x: Tensor, make: Callable[..., Tensor], *sources: Tensor) -> Tensor:
    """x, which knows from now on that make(*sources) gives it again."""
    if torch.is_grad_enabled():
        x.lowrank_origin = Origin(make, tuple(s.detach() for s in sources), x._version)  # type: ignore[attr-defined]
    return x


def origin(x: Tensor) -> Origin:
    """What x was made from; where that is not known, x itself."""
    found: Origin | None = getattr(x, "lowrank_origin", None)
    return found if found is not None and found.version == x._version else Origin(_itself, (x,), x._version)


def _itself(x: Tensor) -> Tensor:
    return x


def in_use(keep: Keep | None) -> Keep | None:
    """`keep` where a backward pass will follow; without gradients nothing has to be kept."""
    return keep if torch.is_grad_enabled() else None


def to_save(keep: Keep | None, x: Tensor, seen: Tensor) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """What a product saves, and what turns it into the `kept` of `weight_gradient`.

    Args:
        keep: the layer's.
        x: the layer's input; it, or its sources, is saved where `keep` is None.
        seen: what the product multiplies, x with dropout; `keep` compresses that.
    """
    if keep is not None:
        return _itself, (keep.compress(seen),)
    found = origin(x)
    return found.make, found.sources


def weight_gradient(keep: Keep | None, grad: Tensor, kept: Tensor) -> Tensor:
    """dW = grad^T x: (N, out), kept input -> (out, in), in the dtype of `grad`.

    In a stack of K members: (K, N, out), kept input (K * B, ..., in) -> (K, out, in).
    """
    if keep is None:
        if grad.ndim == 2:
            return grad.t() @ in_dtype(kept.reshape(-1, kept.shape[-1]), grad.dtype)
        return torch.bmm(grad.mT, in_dtype(kept.reshape(grad.shape[0], -1, kept.shape[-1]), grad.dtype))
    return keep.weight_gradient(grad, kept)
