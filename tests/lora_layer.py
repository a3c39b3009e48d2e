"""One linear layer with a LoRA adapter, and what the formula says of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.methods.adapted import AdaptedLinear
from lowrank.methods.lora import Lora, LoraAdapter
from tests.tolerances import BFLOAT16


def layer_of(
    n: int, m: int, rank: int, *, bias: bool = True, dtype: torch.dtype = torch.float64, **options: Any
) -> Any:
    """One adapted linear layer, n to m, with random factors."""
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(0)
    base = nn.Linear(n, m, bias=bias).to(dtype).requires_grad_(False)
    layer = AdaptedLinear(base)
    adapter = LoraAdapter(n, m, generator, Lora(rank=rank, **options).options)
    nn.init.normal_(adapter.lora_B, generator=generator)
    layer.adapters["lora"] = adapter.double() if dtype == torch.float64 else adapter
    return layer


def by_formula(layer: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    adapter = layer.adapters["lora"]
    dropped = x if mask is None else x * mask
    A, B = adapter.lora_A.to(x.dtype), adapter.lora_B.to(x.dtype)
    return functional.linear(x, layer.weight, layer.bias) + adapter.scaling * (dropped @ A.t() @ B.t())


def gradients(y: Tensor, layer: Any, x: Tensor) -> list[Tensor]:
    """Of a loss with a gradient of its own at every entry of y: to x, A and B."""
    seed = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype)
    adapter = layer.adapters["lora"]
    return list(torch.autograd.grad(y, [x, adapter.lora_A, adapter.lora_B], seed))


def close_in_bfloat16(actual: Tensor, exact: Tensor) -> None:
    """Relative to the largest entry: rounding there is what the small entries see."""
    BFLOAT16.check(actual.to(exact.dtype) / exact.abs().max(), exact / exact.abs().max())
