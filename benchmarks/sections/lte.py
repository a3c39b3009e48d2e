"""LTE's heads, stacked, beside a loop over heads."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.device import device
from benchmarks.models import Size
from benchmarks.paired import alternate
from benchmarks.peers import HeadLoop
from benchmarks.products import six_products
from benchmarks.records import ArmResult, Goal, Section, Spread
from lowrank.methods.adapted import AdaptedLinear
from lowrank.methods.lte import Lte
from lowrank.methods.mhlora import MultiHeadLora
from lowrank.methods.part import Part

RANK = 8
LIMITS = {4: 0.55, 8: 0.45}


def run(size: Size) -> Section:
    width, tokens = size.distilbert.width, 4 if size.quick else 128
    arms, goals = [], []
    for heads, limit in LIMITS.items():
        torch.manual_seed(0)
        base = nn.Linear(width, width, device=device()).requires_grad_(False)
        x = torch.randn(8, tokens, width, device=device(), requires_grad=True)
        gradient = torch.randn(8, tokens, width, device=device())
        layers: dict[str, nn.Module] = {
            "the frozen product alone": base,
            "loop over heads": HeadLoop(base, heads, RANK, split=False).to(device()),
            "mhlora": stacked(base, MultiHeadLora(num_lora_heads=heads, rank=RANK, alpha=4.0 * RANK)),
            "loop over heads and shares": HeadLoop(base, heads, RANK, split=True).to(device()),
            "lte": stacked(base, Lte(num_lora_heads=heads, rank=RANK, alpha=4.0 * RANK)),
        }
        steps = {name: step_of(layer, x, gradient) for name, layer in layers.items()}
        # Beside its own factors, a head of LTE has those of the last merge.
        ranks = {"mhlora": heads * RANK, "lte": 2 * RANK}
        alone = {f"products of {name}": six_products([(width, width)], 8 * tokens, r) for name, r in ranks.items()}
        times = alternate({**steps, **alone}, 5 * size.rounds)
        arms += [ArmResult(name=f"{name}, {heads} heads", step_ms=times.step_ms(name)) for name in layers]
        for ours, loop, what in (
            ("mhlora", "loop over heads", "Multi-head LoRA, every head on the whole batch"),
            ("lte", "loop over heads and shares", "LTE, each head on its share of the batch"),
        ):
            floor = times.ratio("the frozen product alone", loop).median
            products = times.ratio(f"products of {ours}", loop).median
            goals.append(
                Goal(
                    id="G12",
                    what=f"{what}: {heads} heads, forward and backward, of a loop",
                    measured=times.ratio(ours, loop),
                    at_most=limit,
                    note=(
                        f"The frozen product alone takes {floor:.3f} of the loop, and the products of the factors by "
                        f"themselves {products:.3f}: {floor + products:.3f} together."
                    ),
                )
            )
        goals.append(
            Goal(
                id="G12",
                what=f"LTE: bytes of the base with {heads} heads, of the weight once",
                measured=Spread.exact(weights(layers["lte"], width) / (4 * width * width)),
                at_most=1.0,
            )
        )
    setting = f"one layer of {width} x {width}, 8 x {tokens} tokens, rank {RANK} a head; float32"
    return Section(title="LTE", setting=setting, arms=tuple(arms), goals=tuple(goals))


def stacked(base: nn.Linear, part: Part) -> nn.Module:
    layer = AdaptedLinear(base)
    layer.adapters[part.name] = part.new_adapter(base.in_features, base.out_features, torch.Generator().manual_seed(0))  # type: ignore[attr-defined]
    return layer.to(base.weight.device)


def weights(layer: nn.Module, width: int) -> int:
    """Bytes of every tensor of the layer that has the shape of its weight."""
    tensors = {t.untyped_storage().data_ptr(): t for t in [*layer.parameters(), *layer.buffers()]}
    return sum(t.nbytes for t in tensors.values() if t.shape == (width, width))


def step_of(layer: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        layer(x).backward(gradient)
        x.grad = None
        layer.zero_grad(set_to_none=True)

    return step
