"""A linear layer whose frozen weight is stored in 4-bit NormalFloat, through bitsandbytes' kernels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lowrank.methods.adapted import dense_weight, features
from lowrank.methods.bnb import bnb, dynamic_map
from lowrank.methods.drift import Drift, drift_of

BLOCK = 64
"""Weights that share one constant."""

CONSTANT_BLOCK = 256
"""Constants that share one second-level constant, under double quantisation."""


class Nf4Linear(nn.Module):
    """A frozen linear layer whose weight is stored in 4 bits.

    y = x W~^T + b; backward gives the gradient of x (and of b, if it trains) and keeps nothing but the codes.

    Args:
        module: the layer it stands for, `nn.Linear` or Conv1D, with a weight in float32, bfloat16 or
            float16. On the meta device the codes have their shapes and no values.
        double_quant: quantise the block constants too.
        compute_dtype: of the product; None takes the input's.
        requantize: `add_to_weight` stores the sum in 4 bits again, instead of as it is.

    Departs from: bitsandbytes 0.50.2 `Linear4bit`. Its CPU kernel reads some constants from a neighbouring
    block where `in` is a multiple of 16 but not of 64 (1376, for one); ours are right for every shape. In
    evaluation on CPUs with AVX512-BF16 it repacks the codes and multiplies in bfloat16 whatever the input's
    type; ours computes as in training.
    """

    bias: nn.Parameter | None
    """(out,), the base's own, or None."""
    codes: Tensor
    """(ceil(out * in / 2),) uint8: two codes a byte, the first in the high half."""
    absmax: Tensor
    """(blocks,): the constants, float32, or uint8 codes of them."""
    absmax_scale: Tensor
    """(ceil(blocks / 256),) float32; double quantisation only."""
    absmax_mean: Tensor
    """() float32; double quantisation only."""
    merged: Tensor | None
    """(out, in): the dense weight, once something was added to it."""

    def __init__(
        self, module: nn.Module, double_quant: bool, compute_dtype: torch.dtype | None, requantize: bool
    ) -> None:
        super().__init__()
        weight = dense_weight(module).detach()
        self.in_features, self.out_features = features(module)
        self.layout = type(module)
        self.dtype = weight.dtype
        self.double_quant = double_quant
        self.compute_dtype = compute_dtype
        self.requantize = requantize
        self.register_parameter("bias", module._parameters["bias"])
        self.register_buffer("merged", None, persistent=False)
        self.drift: Drift | None = None
        self.store(weight)

    @torch.no_grad()
    def store(self, weight: Tensor) -> None:
        """Quantises a dense (out, in) weight and keeps the codes; sets `drift`."""
        for key, value in _quantize(weight, self.double_quant).items():
            self.register_buffer(key, value)
        if weight.device.type != "meta":
            self.drift = drift_of(self.dense_weight(), weight)

    def dense_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight as (out, in), in the type it had before, or in `dtype`."""
        dtype = dtype or self.dtype
        if self.merged is not None:
            return self.merged.to(dtype)
        bnb()  # registers the operators
        ops: Any = torch.ops.bitsandbytes
        absmax = self.absmax
        if self.double_quant:
            table = dynamic_map(self.codes.device)
            absmax = ops.dequantize_blockwise(absmax, self.absmax_scale, table, CONSTANT_BLOCK, torch.float32)
            absmax += self.absmax_mean
        # Blocks run over the flattened weight. Asked for rows of one block each, the CPU kernel cannot take a
        # constant from the wrong block, as it does for rows of, say, 1376 weights.
        n = self.out_features * self.in_features
        shape = (n // BLOCK, BLOCK) if n % BLOCK == 0 else (1, 2 * self.codes.numel())
        flat: Tensor = ops.dequantize_4bit(self.codes, absmax, BLOCK, "nf4", shape, dtype).view(-1)
        return flat[:n].view(self.out_features, self.in_features)

    @torch.no_grad()
    def add_to_weight(self, delta: Tensor) -> None:
        """W~ <- W~ + delta (out, in): kept dense, or quantised again where `requantize` asks for it."""
        weight = (self.dense_weight(torch.float32) + delta.float()).to(self.dtype)
        if self.requantize:
            self.store(weight)
        else:
            self.merged = weight

    def plain(self) -> nn.Module:
        """A layer of the class it was made from, frozen, with the dense weight."""
        weight = self.dense_weight()
        plain: nn.Module
        if self.layout is not nn.Linear:
            with torch.device("meta"):
                plain = self.layout(self.out_features, self.in_features)
            weight = weight.t().contiguous()
        else:
            plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        plain.weight = nn.Parameter(weight, requires_grad=False)
        plain.register_parameter("bias", self.bias)
        return plain

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> y (..., out)."""
        device = x.device.type
        out_dtype = x.dtype
        dtype = self.compute_dtype
        if dtype is None:
            dtype = out_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        with torch.autocast(device, enabled=False):
            y: Tensor = _Product.apply(x.to(dtype), bias, self)  # type: ignore[no-untyped-call]
        return y.to(out_dtype)


class _Product(torch.autograd.Function):
    """x W~^T + b. W~ is dequantised once in each direction, so no dense weight lives in between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: Nf4Linear) -> Tensor:
        ctx.layer = layer
        return functional.linear(x, layer.dense_weight(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        for_x, for_bias, _ = ctx.needs_input_grad
        grad_x = grad_y @ ctx.layer.dense_weight(grad_y.dtype) if for_x else None
        return grad_x, grad_y.flatten(0, -2).sum(0) if for_bias else None, None


def stored_bytes(in_features: int, out_features: int, double_quant: bool = True) -> int:
    """Bytes that one weight takes: codes and constants, without the bias and the shared codebooks.

    ceil(n / 2) + b + 4 ceil(b / 256) + 4 with double quantisation, ceil(n / 2) + 4 b without, for
    n = in * out weights in b = ceil(n / 64) blocks.
    """
    n = in_features * out_features
    blocks = math.ceil(n / BLOCK)
    constants = blocks + 4 * math.ceil(blocks / CONSTANT_BLOCK) + 4 if double_quant else 4 * blocks
    return math.ceil(n / 2) + constants


def _quantize(weight: Tensor, double_quant: bool) -> dict[str, Tensor]:
    if weight.device.type == "meta":
        # bitsandbytes would keep the meta copy of its table of constants, and spoil every later call.
        blocks = math.ceil(weight.numel() / BLOCK)
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "codes": ((math.ceil(weight.numel() / 2),), torch.uint8),
            "absmax": ((blocks,), torch.uint8 if double_quant else torch.float32),
        }
        if double_quant:
            shapes["absmax_scale"] = ((math.ceil(blocks / CONSTANT_BLOCK),), torch.float32)
            shapes["absmax_mean"] = ((), torch.float32)
        return {key: torch.empty(shape, dtype=dtype, device="meta") for key, (shape, dtype) in shapes.items()}
    codes, state = bnb().functional.quantize_4bit(
        weight.contiguous(), blocksize=BLOCK, compress_statistics=double_quant, quant_type="nf4"
    )
    found = {"codes": codes.view(-1), "absmax": state.absmax}
    if double_quant:
        found |= {"absmax_scale": state.state2.absmax, "absmax_mean": state.offset}
    return found
