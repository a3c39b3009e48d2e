"""Products with some rows or columns of a frozen weight, and estimates of what they would give."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lowrank.methods.adapted import dense_weight
from lowrank.methods.galore_projector import bases
from lowrank.targets import is_transposed


class _Picked(torch.autograd.Function):
    """x @ W[index].T, or x @ W[:, index].T, without keeping the picked weight for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, base: nn.Module, index: Tensor, columns: bool) -> Tensor:
        picked = pick(base, index, columns)
        ctx.base, ctx.columns, ctx.dtype = base, columns, x.dtype
        ctx.save_for_backward(index)
        return x @ (picked if columns else picked.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        # Picked again rather than kept: rows are copied at the speed of memory, while a kept copy of each
        # layer would add up to the model.
        picked = pick(ctx.base, index, ctx.columns).to(gradient.dtype)
        return (gradient @ (picked.t() if ctx.columns else picked)).to(ctx.dtype), None, None, None


def rows_product(x: Tensor, base: nn.Module, rows: Tensor) -> Tensor:
    """y = x W[rows]^T + b[rows].

    Args:
        x: (n, in).
        base: a frozen linear layer with weight (out, in).
        rows: (k,) int64, the outputs that are computed.

    Returns:
        (n, k).
    """
    y: Tensor = _Picked.apply(x, base, rows, False)  # type: ignore[no-untyped-call]
    bias = getattr(base, "bias", None)
    return y if bias is None else y + bias[rows].to(y.dtype)


def columns_product(x: Tensor, base: nn.Module, columns: Tensor) -> Tensor:
    """y = x W[:, columns]^T + b.

    Args:
        x: (n, k), the inputs that are used.
        base: a frozen linear layer with weight (out, in).
        columns: (k,) int64, which inputs those are.

    Returns:
        (n, out).
    """
    y: Tensor = _Picked.apply(x, base, columns, True)  # type: ignore[no-untyped-call]
    bias = getattr(base, "bias", None)
    return y if bias is None else y + bias.to(y.dtype)


def pick(base: nn.Module, index: Tensor, columns: bool) -> Tensor:
    """W[index] (k, in), or W[:, index]^T (k, out): whole rows of memory once `lay_out` has been called."""
    weight = dense_weight(base)
    return (weight.t() if columns else weight).index_select(0, index)


@torch.no_grad()
def lay_out(base: nn.Module, columns: bool | None) -> None:
    """Stores a weight so that what is picked is contiguous: picking strided columns costs twice as much.

    Args:
        base: the layer; its weight keeps shape and values. A coded base is left as it is.
        columns: whether columns are picked; None puts the usual layout back.
    """
    weight = getattr(base, "weight", None)
    if not (isinstance(base, nn.Linear) or is_transposed(base)) or not isinstance(weight, nn.Parameter):
        return
    transposed = columns is not None and columns == isinstance(base, nn.Linear)
    weight.data = weight.data.t().contiguous().t() if transposed else weight.data.contiguous()


class LowRank(nn.Module):
    """A linear layer as its best approximation of a low rank: W ~ L R, made once; the bias stays exact.

    Source: Khaki et al. 2025, "SparseLoRA", section 3.2 (SVD sparsity estimator).

    Args:
        weight: (out, in).
        bias: (out,), or None.
        rank: of the approximation; the shorter side of the weight makes it exact.
    """

    left: Tensor
    """(out, rank), or (out, rank + 1) with the bias in the last column."""
    right: Tensor
    """R^T (in, rank)."""

    @torch.no_grad()
    def __init__(self, weight: Tensor, bias: Tensor | None, rank: int) -> None:
        super().__init__()
        found = bases(weight, rank, "std")
        if "projector_right" in found:
            right = found["projector_right"]
            left = weight @ right
        else:
            left = found["projector_left"]
            right = weight.t() @ left
        if bias is not None:
            left = torch.cat([left, bias[:, None].to(left.dtype)], 1)
        # Buffers, so that they go where the model goes and count as its memory; they follow from the weight.
        self.register_buffer("left", left, persistent=False)
        self.register_buffer("right", right, persistent=False)
        self.biased = bias is not None

    def hidden(self, x: Tensor) -> Tensor:
        """x (n, in) -> R x, and a 1 that meets the bias: (n, rank [+ 1])."""
        hidden = x @ self.right
        return functional.pad(hidden, (0, 1), value=1.0) if self.biased else hidden

    def values(self, hidden: Tensor) -> Tensor:
        """The estimated output: (n, out)."""
        return hidden @ self.left.t()

    def norms(self, x: Tensor) -> Tensor:
        """The estimated L2 norm of each output over the rows of x (n, in): (out,) float32 or wider.

        ||L_j H^T||^2 = L_j (H^T H) L_j^T, so the (n, out) outputs are never formed.
        """
        hidden = self.hidden(x)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        hidden, left = hidden.to(wide), self.left.to(wide)
        squares = ((left @ (hidden.t() @ hidden)) * left).sum(1)
        return squares.clamp_min(0).sqrt()


def estimator_numel(inside: int, outside: int, rank: int, bias: bool) -> int:
    """Numbers that the estimate of one (outside, inside) weight holds: rank (in + out), and the bias."""
    return rank * (inside + outside) + bias * outside
