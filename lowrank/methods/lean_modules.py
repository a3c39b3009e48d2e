"""Norms, activations and gated feed-forward blocks that save less for the backward pass, without loss."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.activations import GELUActivation, GELUTanh, NewGELUActivation, SiLUActivation

from lowrank.methods.keep import made_from

_WIDEST = 64.0
"""Largest |bias / weight| of a norm that is inverted: (y - b) / w has an error of at most
eps (|x^| + 2 |b / w|), so 2e-5 in float32 for an x^ of size 1."""


def _gelu(x: Tensor) -> Tensor:
    return functional.gelu(x)


def _gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


class LeanNorm(nn.Module):
    """A LayerNorm or RMSNorm that saves its output, which the next linear layer needs anyway, and inverts it.

    y = x^ * w + b with x^ = (x - mean) / std, so x^ = (y - b) / w; RMSNorm has neither mean nor b.

    Saved: y and one number a token, where the plain module saves x (RMSNorm: two more of its size). The
    output is the plain module's, bit for bit. Where the inverse would lose digits, the plain module's own
    computation is done: weights near 0, large biases, and inputs in half precision.

    Args:
        plain: the module it stands for; weight and bias stay the same parameters.
    """

    weight: nn.Parameter
    """(width,)."""
    bias: nn.Parameter | None
    """(width,), or None."""

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.plain = (plain,)  # inside a tuple, so that its parameters keep one name
        self.weight = cast(nn.Parameter, plain.weight)
        self.register_parameter("bias", cast("nn.Parameter | None", getattr(plain, "bias", None)))
        self.norm = _LayerNorm if isinstance(plain, nn.LayerNorm) else _RmsNorm
        self.eps = cast(float, plain.eps if isinstance(plain, nn.LayerNorm) else plain.variance_epsilon)
        self.invertible = True
        """Set by `look_at`, before the first step and wherever weight or bias train."""
        self.train(plain.training)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width) -> y (..., width)."""
        wide = x.dtype in (torch.float32, torch.float64)
        if torch.is_grad_enabled() and self.invertible and wide and self.weight.dtype == x.dtype:
            return cast("Callable[..., Tensor]", self.norm.apply)(x, self.weight, self.bias, self.eps)
        plain = self.plain[0]
        plain._parameters.update(self._parameters)
        return cast(Tensor, plain(x))


def look_at(norms: list[LeanNorm]) -> None:
    """Finds out which norms can be inverted; tensors without values are taken to be as they are when drawn."""
    told = []
    for norm in norms:
        weight = norm.weight.detach().float().abs()
        bias = torch.zeros_like(weight) if norm.bias is None else norm.bias.detach().float().abs()
        told.append((_WIDEST * weight > bias + torch.finfo(torch.float32).tiny * 1e6).all())
    if told and norms[0].weight.device.type != "meta" and not isinstance(told[0], torch._subclasses.FakeTensor):
        for norm, fine in zip(norms, torch.stack(told).tolist(), strict=True):
            norm.invertible = fine


class _LayerNorm(torch.autograd.Function):
    """LayerNorm that saves y, w, b and 1 / std (..., 1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        y, _, rstd = torch.native_layer_norm(x, weight.shape, weight, bias, eps)
        ctx.save_for_backward(y, rstd, weight, bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, rstd, weight, bias = ctx.saved_tensors
        normal = y / weight if bias is None else torch.addcmul(-bias / weight, y, weight.reciprocal())
        zero, one = torch.zeros_like(rstd), torch.ones_like(rstd)
        wanted = list(ctx.needs_input_grad[:3])
        found = torch.ops.aten.native_layer_norm_backward(
            grad.contiguous(), normal, weight.shape, zero, one, weight, bias, wanted
        )
        grad_x = found[0].mul_(rstd) if wanted[0] else None
        return grad_x, *(g if want else None for g, want in zip(found[1:], wanted[1:], strict=True)), None


class _RmsNorm(torch.autograd.Function):
    """RMSNorm in the order of operations of transformers' LLaMA; saves y, w and 1 / rms (..., 1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: None, eps: float) -> Tensor:
        work = x.float()
        rstd = torch.rsqrt(work.pow(2).mean(-1, keepdim=True) + eps)
        y = (work * rstd).to(x.dtype).mul_(weight)
        ctx.save_for_backward(y, rstd, weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, rstd, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        normal = y / weight
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * normal).flatten(0, -2).sum(0)
        if ctx.needs_input_grad[0]:
            inner = grad * weight
            along = (inner * normal).mean(-1, keepdim=True)
            grad_x = inner.addcmul_(normal, along, value=-1).mul_(rstd).to(grad.dtype)
        return grad_x, grad_weight, None, None


class LeanActivation(nn.Module):
    """An activation whose output the next layer need not save: it is computed again from the input, which is saved.

    Args:
        plain: the module it stands for.
        function: what that computes.
    """

    def __init__(self, plain: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.plain = (plain,)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """x -> function(x)."""
        return made_from(self.function(x), self.function, x)


def activation_of(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """What an activation module computes, or None where it is another module."""
    if isinstance(module, SiLUActivation | nn.SiLU):
        return functional.silu
    if isinstance(module, NewGELUActivation):
        return _gelu_tanh  # its formula in one kernel: the same up to rounding
    if isinstance(module, nn.GELU):
        return _gelu if module.approximate == "none" else _gelu_tanh
    if isinstance(module, GELUTanh) and isinstance(module.act, functools.partial):
        return _gelu_tanh
    if isinstance(module, GELUActivation) and module.act is functional.gelu:
        return _gelu
    return None


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    return functional.silu(gate) * up


class _Gated(torch.autograd.Function):
    """silu(gate) * up, from gate and up alone; plain autograd saves silu(gate) too."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return gated(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), functional.silu(gate).mul_(grad)


class LeanGatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x)) that saves the outputs of gate and up, and nothing else of their width.

    Args:
        plain: the module it stands for, which holds gate_proj, up_proj and down_proj under these names.
    """

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.plain = (plain,)
        self._modules.update(plain._modules)  # the same children by the same names

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width) -> y (..., width)."""
        children: Any = self
        gate, up = children.gate_proj(x), children.up_proj(x)
        product = cast("Callable[..., Tensor]", _Gated.apply)(gate, up)
        return cast(Tensor, children.down_proj(made_from(product, gated, gate, up)))
