"""The peers: packages as they are, and published code that no package holds, computed as it computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.device import device


def peft_model(model: nn.Module, config: Any) -> nn.Module:
    """A model under PEFT, the head of a classifier trained whole."""
    import peft

    if hasattr(model, "classifier"):
        config.modules_to_save = ["pre_classifier", "classifier"]
    return cast(nn.Module, peft.get_peft_model(cast(Any, model), config)).train()


def quantise(model: nn.Module, names: list[str]) -> nn.Module:
    """Puts bitsandbytes' 4-bit layers in the place of the layers whose names end so."""
    import bitsandbytes

    for name, old in list(model.named_modules()):
        if isinstance(old, nn.Linear) and name.rpartition(".")[2] in names:
            new = bitsandbytes.nn.Linear4bit(
                old.in_features,
                old.out_features,
                bias=old.bias is not None,
                compute_dtype=old.weight.dtype,
                quant_type="nf4",
                compress_statistics=True,
            )
            new.load_state_dict(old.state_dict())
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, new.to(device()))
    return model.requires_grad_(False)


SCALE = 1.0


class PublishedVelora(torch.autograd.Function):
    """VeLoRA's weight gradient as roymiles/VeLoRA forms it: z v^T whole, one gradient per example, scaled, summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, vector: Tensor) -> Tensor:
        with torch.no_grad():
            z = x.reshape(-1, vector.numel()) @ vector
        ctx.save_for_backward(z, weight, vector)
        ctx.shape = x.shape
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        z, weight, vector = ctx.saved_tensors
        restored = torch.outer(z, vector).view(ctx.shape)
        per_example = grad.transpose(1, 2) @ restored  # (B, out, in)
        return grad @ weight, (SCALE * per_example).sum(0), grad.sum((0, 1)), None


class PublishedVeloraLinear(nn.Module):
    """A linear layer with that gradient; its vector is the mean sub-token of the first batch."""

    def __init__(self, base: nn.Linear, groups: int) -> None:
        super().__init__()
        self.base, self.size = base, base.in_features // groups
        self.vector: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.vector is None:
            self.vector = functional.normalize(x.detach().reshape(-1, self.size).mean(0), dim=0)
        apply = cast("Callable[..., Tensor]", PublishedVelora.apply)
        return apply(x, self.base.weight, self.base.bias, self.vector)


class HeadLoop(nn.Module):
    """Multi-head LoRA as minyoungg/LTE computes it: one head after another.

    Args:
        base: the frozen layer.
        heads: how many.
        rank: of each.
        split: each head has a copy of the weight and its own part of the batch (its `dmp` layer); otherwise
            every head sees the whole batch beside one weight (its `mhlora` layer).
    """

    def __init__(self, base: nn.Linear, heads: int, rank: int, split: bool) -> None:
        super().__init__()
        self.base, self.split, self.scaling = base, split, 4.0
        self.downs = nn.ModuleList(nn.Linear(base.in_features, rank, bias=False) for _ in range(heads))
        self.ups = nn.ModuleList(nn.Linear(rank, base.out_features, bias=False) for _ in range(heads))
        self.copies = [base.weight.detach().clone() for _ in range(heads)] if split else []

    def forward(self, x: Tensor) -> Tensor:
        if not self.split:
            y: Tensor = self.base(x)
            for down, up in zip(self.downs, self.ups, strict=True):
                y += self.scaling * up(down(x))
            return y
        shares = zip(x.chunk(len(self.copies)), self.copies, self.downs, self.ups, strict=True)
        return torch.cat(
            [
                self.scaling * up(down(share)) + functional.linear(share, weight, self.base.bias)
                for share, weight, down, up in shares
            ]
        )
