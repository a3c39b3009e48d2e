"""VeLoRA's way of keeping an input: each sub-token by its length along one unit vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    def vector_on(self, device: torch.device) -> Tensor:
        """v, which goes to where it is used once: it may have been drawn, or read, on the CPU.

        Raises:
            ConfigError: no vector yet.
        """
        if self.vector is None:
            raise ConfigError("velora: no vectors yet; allowed: chain.before_step on the first batch, or init: random")
        if self.vector.device != device:
            self.vector = self.vector.to(device)
        return self.vector

    def split(self, x: Tensor) -> Tensor:
        """x (..., D) -> its sub-tokens (N G, s)."""
        return x.reshape(-1, self.size)

    def compress(self, x: Tensor) -> Tensor:
        """x (..., D) -> z (N, G).

        Raises:
            ConfigError: no vector yet.
        """
        dtype = self.dtype or x.dtype
        return (self.split(x).to(dtype) @ self.vector_on(x.device).to(dtype)).view(-1, self.groups)

    def weight_gradient(self, grad: Tensor, kept: Tensor) -> Tensor:
        """dW[m, g s + j] = scale (grad^T z)[m, g] v[j]: (out, D), in 1/s of the products of grad^T x."""
        along = kept.t() @ grad.to(kept.dtype)  # (G, out)
        vector = self.vector_on(kept.device).to(kept.dtype) * self.scale
        return (along.t().unsqueeze(-1) * vector).flatten(1).to(grad.dtype)


class StackedSubTokens(SubTokens):
    """The same for K members at once: z_k = sub-tokens of x_k times v_k.

    Args:
        members: each member's own, which hold its vector; alike but for that.
    """

    def __init__(self, members: Sequence[SubTokens]) -> None:
        first = members[0]
        self._whole: Tensor | None = None
        super().__init__(first.groups, first.groups * first.size, first.scale, first.dtype)
        self.members = members

    @property
    def vector(self) -> Tensor | None:
        """v (K, s), or None before the first batch."""
        if self._whole is None:
            own = [member.vector for member in self.members]
            self._whole = None if any(v is None for v in own) else torch.stack(cast("list[Tensor]", own))
        return self._whole

    @vector.setter
    def vector(self, vectors: Tensor | None) -> None:
        self._whole = vectors
        if vectors is not None:
            for member, vector in zip(self.members, vectors, strict=True):
                member.vector = vector

    def split(self, x: Tensor) -> Tensor:
        """x (K * B, ..., D) -> its sub-tokens (K, N G, s)."""
        return x.reshape(len(self.members), -1, self.size)

    def compress(self, x: Tensor) -> Tensor:
        """x (K * B, ..., D) -> z (K, N, G)."""
        dtype = self.dtype or x.dtype
        vectors = self.vector_on(x.device).to(dtype).unsqueeze(-1)
        return torch.bmm(self.split(x).to(dtype), vectors).view(len(vectors), -1, self.groups)

    def weight_gradient(self, grad: Tensor, kept: Tensor) -> Tensor:
        """grad (K, N, out), z (K, N, G) -> dW (K, out, D)."""
        along = kept.mT @ grad.to(kept.dtype)  # (K, G, out)
        vectors = self.vector_on(kept.device).to(kept.dtype)[:, None, None] * self.scale
        return (along.mT.unsqueeze(-1) * vectors).flatten(2).to(grad.dtype)


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
