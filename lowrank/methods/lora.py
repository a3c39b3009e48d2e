"""LoRA: a trained low-rank term beside a frozen weight."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.methods.adapted import AdaptedLinear
from lowrank.methods.adapter import AdapterOptions, AdapterPart
from lowrank.strict import Fraction, PositiveFloat, PositiveInt


class Lora(AdapterPart):
    """Adds a low-rank term to each target.

    y = W0 x + b + (alpha / rank) B A drop(x)

    `lora_A` (rank, in) ~ U(-1/sqrt(in), 1/sqrt(in)), which is PEFT's Kaiming-uniform with a = sqrt(5);
    `lora_B` (out, rank) = 0, so attaching changes nothing.

    Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", eq. 3.
    """

    name = "lora"
    knobs = {"r": "rank", "a": "alpha"}

    class Options(AdapterOptions):
        """rank, alpha and dropout of LoRA."""

        rank: PositiveInt = 8
        alpha: PositiveFloat = 16.0
        dropout: Fraction = 0.0
        """Probability with which an entry of the adapter's input is dropped in training."""

    def new_adapter(self, in_features: int, out_features: int, generator: torch.Generator) -> nn.Module:
        """A LoRA adapter for one layer."""
        return LoraAdapter(in_features, out_features, generator, self.options)


class LoraAdapter(nn.Module):
    """The two factors of one layer.

    Args:
        in_features: width of x.
        out_features: width of y.
        generator: draws lora_A.
        options: rank, alpha, dropout.
    """

    def __init__(self, in_features: int, out_features: int, generator: torch.Generator, options: Any) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        uniform = torch.rand(options.rank, in_features, generator=generator)
        self.lora_A = nn.Parameter(uniform.mul_(2 * bound).sub_(bound))
        self.lora_B = nn.Parameter(torch.zeros(out_features, options.rank))
        self.scaling = options.alpha / options.rank
        self.dropout = options.dropout

    def forward(self, x: Tensor, y: Tensor, layer: AdaptedLinear) -> Tensor:
        """x (..., in), y (..., out) -> y + scaling B A drop(x)."""
        dropped = functional.dropout(x, self.dropout, self.training)
        hidden = functional.linear(dropped, self.lora_A.to(x.dtype))  # (..., rank)
        # addmm folds the scaling and the sum into the product: no (..., out) temporary.
        flat = torch.addmm(
            y.reshape(-1, y.shape[-1]),
            hidden.reshape(-1, hidden.shape[-1]).to(y.dtype),
            self.lora_B.t().to(y.dtype),
            alpha=self.scaling,
        )
        return flat.view_as(y)

    def delta_weight(self, layer: AdaptedLinear) -> Tensor:
        """scaling B A: (out, in)."""
        delta: Tensor = self.scaling * (self.lora_B @ self.lora_A)
        return delta
