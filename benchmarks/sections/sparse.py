"""SparseLoRA's feed-forward products beside the dense ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.device import device
from benchmarks.models import Size
from benchmarks.paired import alternate
from benchmarks.records import ArmResult, Goal, Section
from lowrank.methods.sparse_product import columns_product, lay_out, rows_product

KEPT = (0.75, 0.5, 0.25)
MARGIN = 0.05


def run(size: Size) -> Section:
    shape = size.distilbert
    torch.manual_seed(0)
    up = nn.Linear(shape.width, shape.hidden, device=device()).requires_grad_(False)
    down = nn.Linear(shape.hidden, shape.width, device=device()).requires_grad_(False)
    lay_out(up, columns=False)
    lay_out(down, columns=True)
    tokens = shape.examples * shape.tokens
    x = torch.randn(tokens, shape.width, device=device(), requires_grad=True)
    gradient = torch.randn(tokens, shape.width, device=device())

    def thin(channels: Tensor) -> Callable[[], None]:
        def step() -> None:
            h = functional.gelu(rows_product(x, up, channels))
            columns_product(h, down, channels).backward(gradient)
            x.grad = None

        return step

    def dense() -> None:
        down(functional.gelu(up(x))).backward(gradient)
        x.grad = None

    order = torch.randperm(shape.hidden).to(device())
    chosen = {share: order[: int(share * shape.hidden)].sort().values for share in KEPT}
    times = alternate(
        {"dense": dense, **{f"keep {share}": thin(channels) for share, channels in chosen.items()}}, 5 * size.rounds
    )
    goals = [
        Goal(
            id="G12",
            what=f"SparseLoRA: frozen feed-forward with {share} of the channels, of the dense one (D)",
            measured=times.ratio(f"keep {share}", "dense"),
            at_most=share + MARGIN,
        )
        for share in KEPT
    ]
    arms = [ArmResult(name=f"feed-forward, {name}", step_ms=times.step_ms(name)) for name in times.seconds]
    setting = f"one feed-forward block of {shape}; forward pass and gradient to x, float32"
    return Section(title="SparseLoRA", setting=setting, arms=tuple(arms), goals=tuple(goals))
