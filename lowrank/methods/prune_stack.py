"""Pruning for K members at once: one mask a factor, in which each member has its own entries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.methods.adapted import adapted
from lowrank.methods.stacked import corner, padded


class StackedPrune:
    """Asks each member's part what it prunes, and holds that in all members with one product a factor.

    Args:
        members: the attached parts; what they hold stays theirs, so that each is saved as if alone.
        model: the members' models as one.
    """

    name = "prune"

    def __init__(self, members: Sequence[Any], model: nn.Module) -> None:
        self.members = members
        held = {f"{name}.adapters": layer.adapters for name, layer in adapted(model)}
        self.factors = {f"{prefix}.{key}": p for prefix, pairs in held.items() for key, p in pairs.named_parameters()}
        """Name -> (K, ...)."""
        self.shapes = [{name: factor.shape for name, factor in member.factors().items()} for member in members]
        self.masks: dict[str, Tensor] = {}
        self.lambdas: Tensor | None = None
        self.refresh()
        if any(not member.options.regrow for member in members):
            for name, factor in self.factors.items():
                factor.register_hook(self._live(name))

    def penalty(self) -> Tensor:
        """The sum over members of lambda_k sum |w_k|: (); each member's gradient is that of its own term."""
        factors = list(self.factors.values())
        if not any(member.options.l1_lambda for member in self.members):
            return torch.zeros((), device=factors[0].device)
        if self.lambdas is None:  # once: a tensor from Python's numbers waits for the device
            self.lambdas = factors[0].new_tensor([member.options.l1_lambda for member in self.members])
        sums = torch.stack([factor.abs().flatten(1).sum(1) for factor in factors])  # (factors, K)
        return (sums.sum(0) * self.lambdas).sum()

    @torch.no_grad()
    def after_step(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Prunes the members whose turn it is, and holds what was pruned before."""
        due = False
        for index, member in enumerate(self.members):
            if member.sparsity_at(step) is None:
                continue
            due = True
            own = {name: self.factors[name][index][corner(shape)] for name, shape in self.shapes[index].items()}
            for name, mask in member.prune(own, step).items():
                own[name].mul_(mask)
        if due:
            self.refresh()
        for name, mask in self.masks.items():
            self.factors[name].mul_(mask)

    def refresh(self) -> None:
        """Takes what the members hold; a member that holds nothing yet keeps everything."""
        self.masks = {}
        if not any(member.masks for member in self.members):
            return
        for name, factor in self.factors.items():
            masks = [
                member.masks.get(name, torch.ones(shapes[name], dtype=torch.bool, device=factor.device))
                for member, shapes in zip(self.members, self.shapes, strict=True)
            ]
            self.masks[name] = padded(masks)

    def _live(self, name: str) -> Callable[[Tensor], Tensor]:
        return lambda grad: grad * self.masks[name] if name in self.masks else grad
