"""The products of a low-rank term by themselves: what no implementation of an adapter can leave out."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from benchmarks.device import device


def six_products(
    layers: Iterable[tuple[int, int]], tokens: int, rank: int, dtype: torch.dtype = torch.float32
) -> Callable[[], None]:
    """Forward and backward of B A x beside layers of (in, out): two products, and four for B, A and x."""
    made = []
    for inside, outside in layers:
        sizes = (tokens, inside), (tokens, outside), (rank, inside), (outside, rank)
        made.append(tuple(torch.randn(size, dtype=dtype, device=device()) for size in sizes))

    def step() -> None:
        for x, y, down, up in made:
            hidden = down @ x.t()
            y.addmm_(hidden.t(), up.t(), alpha=1e-9)
            back = up.t() @ y.t()  # y stands for the gradient, which has its shape
            hidden @ y
            back @ x
            x.addmm_(back.t(), down, alpha=1e-9)

    return step
