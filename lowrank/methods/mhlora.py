"""Multi-head LoRA: several LoRA terms beside one frozen weight, all trained on all of the data."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowrank.methods.adapted import AdaptedLinear
from lowrank.methods.adapter import AdapterOptions, AdapterPart
from lowrank.methods.lora import add_low_rank
from lowrank.strict import PositiveFloat, PositiveInt


class HeadsOptions(AdapterOptions):
    """Number and size of the heads."""

    num_lora_heads: PositiveInt = 4
    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0


class MultiHeadLora(AdapterPart):
    """Adds the mean (or sum) of N low-rank terms to each target.

    y = W0 x + b + (s / N) sum_n B_n A_n x    with s = alpha / rank

    The same as one LoRA of rank N * rank with scaling s / N, and computed as that. `lora_A` (N, rank, in):
    orthonormal rows times sqrt(in / rank); `lora_B` (N, out, rank) = 0, so attaching changes nothing.

    Source: Huh et al. 2024, "Training Neural Networks from Scratch with Parallel Low-Rank Adapters", eq. 2.
    Departs from: minyoungg/LTE's `mhlora`, which loops over the heads and sums them without 1 / N
    (`combine: sum`); the low-rank training document's "Seq" arms ran that code, without merging.
    """

    name = "mhlora"
    knobs = {"n": "num_lora_heads", "r": "rank", "a": "alpha"}

    class Options(HeadsOptions):
        """Heads of multi-head LoRA and how they are combined."""

        combine: Literal["mean", "sum"] = "mean"
        """`mean` divides by the number of heads, as the paper does; `sum` does not, as published code does."""

    def new_adapter(self, in_features: int, out_features: int, generator: torch.Generator) -> nn.Module:
        """The stacked heads of one layer."""
        return MultiHeadAdapter(in_features, out_features, generator, self.options)


class Heads(nn.Module):
    """The stacked factors of one layer's heads.

    Args:
        in_features: width of x.
        out_features: width of y.
        generator: draws lora_A, head by head.
        options: num_lora_heads, rank, alpha.
    """

    def __init__(self, in_features: int, out_features: int, generator: torch.Generator, options: Any) -> None:
        super().__init__()
        heads, rank = options.num_lora_heads, options.rank
        self.lora_A = nn.Parameter(torch.empty(heads, rank, in_features))
        self.lora_B = nn.Parameter(torch.zeros(heads, out_features, rank))
        with torch.no_grad():
            for head in self.lora_A:
                nn.init.orthogonal_(head, gain=math.sqrt(in_features / rank), generator=generator)
        self.heads = heads
        self.scaling = options.alpha / rank


class MultiHeadAdapter(Heads):
    """All heads on all examples."""

    keeps_input = True
    """The gradient of the factors asks `layer.keep` for the input."""

    def __init__(self, in_features: int, out_features: int, generator: torch.Generator, options: Any) -> None:
        super().__init__(in_features, out_features, generator, options)
        self.each = self.scaling / self.heads if options.combine == "mean" else self.scaling
        """What one head's B_n A_n x is multiplied with."""

    def forward(self, x: Tensor, y: Tensor, layer: AdaptedLinear) -> Tensor:
        """x (..., in), y (..., out) -> y + each * sum_n B_n A_n x."""
        return add_low_rank(x, y, *side_by_side(self.lora_A, self.lora_B), self.each, keep=layer.keep)

    def delta_weight(self, layer: AdaptedLinear) -> Tensor:
        """each * sum_n B_n A_n: (out, in)."""
        return sum_of_products(self.lora_A, self.lora_B, self.each)


def side_by_side(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The heads as one pair of factors: (N, r, in), (N, out, r) -> (N r, in), (out, N r)."""
    return down.flatten(0, 1), up.transpose(0, 1).flatten(1)


def sum_of_products(down: Tensor, up: Tensor, scaling: float) -> Tensor:
    """scaling sum_n up_n down_n: (out, in), from (N, r, in) and (N, out, r)."""
    A, B = side_by_side(down, up)
    delta: Tensor = scaling * (B @ A)
    return delta
