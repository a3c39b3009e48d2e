"""Steps of an optimizer from given gradients, and gradients with a known spectrum."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def steps(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, gradients: list[Tensor]) -> list[Tensor]:
    """The update of each step."""
    updates = []
    for gradient in gradients:
        before = parameter.detach().clone()
        parameter.grad = gradient.clone()
        optimizer.step()
        updates.append(parameter.detach() - before)
    return updates


def spread(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A gradient whose singular values lie well apart, so that its singular vectors are well defined."""
    torch.manual_seed(seed)
    left, _, right = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    values = 2.0 ** -torch.arange(left.shape[-1], dtype=torch.float64)
    return ((left * values) @ right).to(dtype)
