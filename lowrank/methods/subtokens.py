"""VeLoRA's way of keeping an input: each sub-token by its length along one unit vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lowrank.errors import ConfigError
from lowrank.methods.adapted import AdaptedLinear, dense_weight
from lowrank.methods.keep import Keep, to_save, weight_gradient


class SubTokens:
    """Keeps G numbers of a token of width D = G s: z[n, g] = x[n, g s : (g + 1) s] . v

    Args:
        groups: G.
        width: D, a multiple of G.
        scale: factor of the weight gradient.
        dtype: in which z and v are held and multiplied; None is the dtype of x.
    """

    def __init__(self, groups: int, width: int, scale: float, dtype: torch.dtype | None) -> None:
        self.groups, self.size, self.scale, self.dtype = groups, width // groups, scale, dtype
        self.vector: Tensor | None = None
        """v (s,), a unit vector in float32; None before the first batch."""

    def split(self, x: Tensor) -> Tensor:
        """x (..., D) -> its sub-tokens (N G, s)."""
        return x.reshape(-1, self.size)

    def compress(self, x: Tensor) -> Tensor:
        """x (..., D) -> z (N, G).

        Raises:
            ConfigError: no vector yet.
        """
        if self.vector is None:
            raise ConfigError("velora: no vectors yet; allowed: chain.before_step on the first batch, or init: random")
        dtype = self.dtype or x.dtype
        return (self.split(x).to(dtype) @ self.vector.to(x.device, dtype)).view(-1, self.groups)

    def weight_gradient(self, grad: Tensor, kept: Tensor) -> Tensor:
        """dW[m, g s + j] = scale (grad^T z)[m, g] v[j]: (out, D), in 1/s of the products of grad^T x."""
        assert self.vector is not None
        along = kept.t() @ grad.to(kept.dtype)  # (G, out)
        vector = self.vector.to(kept.device, kept.dtype) * self.scale
        return (along.t().unsqueeze(-1) * vector).flatten(1).to(grad.dtype)


class KeptProduct:
    """The product with a base weight that trains, its input kept as the layer says."""

    def __init__(self, layer: AdaptedLinear) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        """x (..., in) -> base output (..., out)."""
        layer = self.layer
        if not torch.is_grad_enabled():
            return cast(Tensor, layer.base(x))
        apply = cast("Callable[..., Tensor]", _KeptLinear.apply)
        return apply(x, dense_weight(layer.base), layer.bias, layer.base, layer.keep)


class _KeptLinear(torch.autograd.Function):
    """y = W x + b as the base computes it; saved for the weight gradient is what `keep` makes of x, or its sources."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, base: Any, keep: Keep | None) -> Tensor:
        ctx.restore, saved = to_save(keep, x, x)
        ctx.save_for_backward(weight, *saved)
        ctx.keep, ctx.dtype = keep, x.dtype
        return cast(Tensor, base(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *saved = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        grad_x = (grad @ weight.to(grad.dtype)).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        grad_weight = weight_gradient(ctx.keep, flat, ctx.restore(*saved)).to(weight.dtype)
        grad_bias = flat.sum(0).to(weight.dtype) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias, None, None
