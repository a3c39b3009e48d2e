"""LoRA for K members at once: batched small products beside the shared weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lowrank.methods.adapted import AdaptedLinear
from lowrank.methods.keep import Keep, in_dtype, in_use, to_save, weight_gradient
from lowrank.methods.stacked import by_member, padded


class StackedLora(nn.Module):
    """The factors of one layer for all members; ranks below the largest are filled up with zeros.

    y_k = y_k + (alpha_k / rank_k) B_k A_k x_k

    Args:
        adapters: one `LoraAdapter` a member, without dropout.
    """

    keeps_input = True
    """The gradient of the factors asks `layer.keep` for the input."""

    def __init__(self, adapters: Sequence[Any]) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(padded([adapter.lora_A for adapter in adapters]))
        """(K, rank, in)"""
        self.lora_B = nn.Parameter(padded([adapter.lora_B for adapter in adapters]))
        """(K, out, rank)"""
        self.scaling: Tensor
        scalings = self.lora_A.new_tensor([float(adapter.scaling) for adapter in adapters])
        self.register_buffer("scaling", scalings.view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor, y: Tensor, layer: AdaptedLinear) -> Tensor:
        """x (K * B, ..., in), y (K * B, ..., out) -> y plus each member's term, written into y."""
        apply = cast("Callable[..., Tensor]", _AddStacked.apply)
        return apply(x, y, self.lora_A, self.lora_B, self.scaling, in_use(layer.keep))


class _AddStacked(torch.autograd.Function):
    """y_k += scaling_k B_k A_k x_k, and its gradients; saved is what `lora` saves of a member alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, A: Tensor, B: Tensor, scaling: Tensor, keep: Keep | None) -> Tensor:
        ctx.keep, ctx.shape, ctx.dtype = keep, x.shape, x.dtype
        members, dtype = A.shape[0], y.dtype
        rows = in_dtype(by_member(x, members), dtype)  # (K, N, in)
        hidden = torch.bmm(in_dtype(A, dtype), rows.mT)
        hidden = in_dtype(hidden, dtype).mul_(scaling)  # (K, rank, N); autocast may have changed it
        out = y.detach()
        by_member(out, members).baddbmm_(hidden.mT, in_dtype(B, dtype).mT)
        ctx.restore, saved = to_save(keep, x, x)
        ctx.save_for_backward(hidden, A, B, scaling, *saved)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, A, B, scaling, *saved = ctx.saved_tensors
        dtype = grad.dtype
        rows = by_member(grad, A.shape[0])  # (K, N, out)
        grad_hidden = torch.bmm(in_dtype(B, dtype).mT, rows.mT).mul_(scaling)  # (K, rank, N)
        grad_B = torch.bmm(hidden, rows).mT
        grad_A = weight_gradient(ctx.keep, grad_hidden.mT, ctx.restore(*saved))
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = in_dtype(torch.bmm(grad_hidden.mT, in_dtype(A, dtype)).view(ctx.shape), ctx.dtype)
        return grad_x, grad, in_dtype(grad_A, A.dtype), in_dtype(grad_B, B.dtype), None, None
