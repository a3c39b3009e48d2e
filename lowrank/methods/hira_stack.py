"""HiRA for K members at once: each member's weight is formed and multiplied in one batched product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lowrank.methods.adapted import AdaptedLinear, dense_weight
from lowrank.methods.keep import in_use, to_save, weight_gradient
from lowrank.methods.stacked import by_member, padded


def adapted_weight(weight: Tensor, A: Tensor, B: Tensor, residual: bool) -> Tensor:
    """W * (B A), plus W where residual: (out, in), or (K, out, in), in the wider dtype of W and the factors."""
    product = B @ A
    return torch.addcmul(weight, weight, product) if residual else weight * product


class StackedHira(nn.Module):
    """The factors of one layer for all members; ranks below the largest are filled up with zeros.

    Args:
        adapters: one `HiraAdapter` a member, of one form.
    """

    keeps_input = True
    """The gradient of the factors asks `layer.keep` for the input."""

    def __init__(self, adapters: Sequence[Any]) -> None:
        super().__init__()
        self.hira_A = nn.Parameter(padded([adapter.hira_A for adapter in adapters]))
        """(K, rank, in)"""
        self.hira_B = nn.Parameter(padded([adapter.hira_B for adapter in adapters]))
        """(K, out, rank)"""
        self.residual: bool = adapters[0].residual

    def forward(self, x: Tensor, y: Tensor, layer: AdaptedLinear) -> Tensor:
        """y as it is: the adapted weight is in the base product already."""
        return y

    def product(self, x: Tensor, layer: AdaptedLinear) -> Tensor:
        """x (K * B, ..., in) -> each member's product, and bias: (K * B, ..., out)."""
        apply = cast("Callable[..., Tensor]", _StackedHadamard.apply)
        return apply(x, layer.bias, self.hira_A, self.hira_B, layer.base, self.residual, in_use(layer.keep))


class _StackedHadamard(torch.autograd.Function):
    """y_k = (W + W * (B_k A_k)) x_k + b_k, and its gradients; the weights are formed again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, base: nn.Module, residual: bool, keep: Any
    ) -> Tensor:
        weight = dense_weight(base)
        ctx.restore, saved = to_save(keep, x, x)
        ctx.save_for_backward(A, B, *saved)
        ctx.base, ctx.residual, ctx.keep, ctx.shape, ctx.dtype = base, residual, keep, x.shape, x.dtype
        ctx.shared_bias = bias is None or bias.ndim == 1
        wide = adapted_weight(weight, A, B, residual).to(weight.dtype)
        y = torch.bmm(by_member(x, len(A)), wide.mT)
        if bias is not None:
            y += bias if ctx.shared_bias else bias.unsqueeze(1)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        A, B, *saved = ctx.saved_tensors
        kept = ctx.restore(*saved)
        weight = dense_weight(ctx.base)
        rows = by_member(grad, len(A))  # (K, N, out)
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            wide = adapted_weight(weight, A, B, ctx.residual).to(grad.dtype)
            grad_x = torch.bmm(rows, wide).view(ctx.shape).to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            grad_bias = rows.sum((0, 1) if ctx.shared_bias else 1).to(weight.dtype)
        grad_product = weight_gradient(ctx.keep, rows, kept).to(A.dtype) * weight
        return grad_x, grad_bias, B.mT @ grad_product, grad_product @ A.mT, None, None, None
