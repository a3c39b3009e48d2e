"""The product of LTE: each head's low-rank term, added for the examples that are its share of the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lowrank.methods.keep import to_save


def add_shares(x: Tensor, y: Tensor, down: Tensor, up: Tensor, scaling: float) -> Tensor:
    """y + scaling up_n down_n x for the examples of head n, written into y; example i is of head i mod N.

    Args:
        x: (B, ..., in); N divides B.
        y: (B, ..., out); its storage is reused.
        down: (N, rank, in).
        up: (N, out, rank).
        scaling: of the term.
    """
    apply = cast("Callable[..., Tensor]", _AddShares.apply)
    return apply(x, y, down, up, scaling)


class _AddShares(torch.autograd.Function):
    """One batched product an example, so that neither x nor y is sorted by head.

    Saved: x, which the layer's neighbours save anyway (or its sources), the factors and down_n x. As in
    `lora`, the products run with rank as the leading axis.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, down: Tensor, up: Tensor, scaling: float) -> Tensor:
        ctx.scaling, ctx.shape, ctx.dtype = scaling, x.shape, x.dtype
        wide_down, wide_up = (_each_example(factor, len(x)).to(y.dtype) for factor in (down, up))
        hidden = torch.bmm(wide_down, _tokens(x).mT.to(y.dtype)).to(y.dtype)  # (B, rank, T)
        out = y.detach()
        out.view(len(y), -1, y.shape[-1]).baddbmm_(hidden.mT, wide_up.mT, alpha=scaling)
        ctx.restore, saved = to_save(None, x, x)
        ctx.save_for_backward(hidden, down, up, *saved)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, down, up, *saved = ctx.saved_tensors
        tokens, heads = _tokens(grad), len(down)
        wide_down, wide_up = (_each_example(factor, len(grad)).to(grad.dtype) for factor in (down, up))
        grad_hidden = torch.bmm(wide_up.mT, tokens.mT).mul_(ctx.scaling)  # (B, rank, T)
        grad_up = _each_head(torch.bmm(hidden, tokens), heads).mul_(ctx.scaling).mT
        grad_down = _each_head(torch.bmm(grad_hidden, _tokens(ctx.restore(*saved)).to(grad.dtype)), heads)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.bmm(grad_hidden.mT, wide_down).view(ctx.shape).to(ctx.dtype)
        return grad_x, grad, grad_down.to(down.dtype), grad_up.to(up.dtype), None


def _tokens(x: Tensor) -> Tensor:
    """(B, ..., width) -> (B, T, width)."""
    return x.reshape(len(x), -1, x.shape[-1])


def _each_example(factor: Tensor, examples: int) -> Tensor:
    """(N, a, b) -> (B, a, b): the factor of each example's head."""
    return factor.repeat(examples // len(factor), 1, 1)


def _each_head(gradient: Tensor, heads: int) -> Tensor:
    """(B, a, b) -> (N, a, b): the sum over each head's examples."""
    return gradient.view(-1, heads, *gradient.shape[1:]).sum(0)
