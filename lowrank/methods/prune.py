"""Pruning of the adapter's factors: the comparison document's Sparse LoRA."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from lowrank.errors import ConfigError, IntegrityError
from lowrank.methods.adapted import adapted
from lowrank.methods.adapter import AdapterPart
from lowrank.methods.part import Part
from lowrank.methods.prune_stack import StackedPrune
from lowrank.spec import PartOptions
from lowrank.strict import Fraction, NonNegativeFloat, PositiveInt


class Prune(Part):
    """Sets a share of the adapters' weights to exactly zero, and holds them there.

    With s the sparsity at a pruning step, each factor of each layer apart keeps

    - magnitude: |w| strictly above its s-quantile;
    - topk: |w| at or above its k-th largest, k = n - round(s n), so that ties are kept;
    - l1: as magnitude, where the penalty below has sorted out what is small;
    - structured: whole rank components, row i of A and column i of B, those with the largest
      ||A_i|| ||B_i||, which is the norm of B_i A_i; round(s rank) of them go.

    Steps count from 1. Pruning happens at `start`, and with `every` again and again up to `end`. The
    sparsity there is `sparsity` (one_shot), or climbs to it from 0 between `start` and `end`:
    s (1 - (1 - p)^3) for cubic, s p for linear, p = (step - start) / (end - start).

    Between prunings the mask is put on again after each optimizer step and on each gradient, so that the
    norm that clips counts live weights only. Adam's moments of a pruned weight are left alone: they
    cannot reach a weight that is held at zero. With `regrow` nothing is held, and a pruned weight may
    come back, through those moments too, until the next pruning.

    The document's code prunes once at the end of each epoch and lets the weights grow back: start and
    every are the steps of an epoch, `regrow: true`. Its penalty enters the loss twice, which is twice
    the lambda here.

    Source: peft_comparison, section 2, "Sparse LoRA"; cubic ramp: Zhu & Gupta 2017, "To prune, or not to
    prune", eq. 1.
    """

    name = "prune"
    knobs = {"p": "sparsity"}
    varies = frozenset({"sparsity", "schedule", "start", "every", "end", "l1_lambda"})

    class Options(PartOptions):
        """What goes, how much of it, and when."""

        method: Literal["magnitude", "topk", "l1", "structured"] = "magnitude"
        sparsity: Fraction = 0.5
        """Share of zeros that is aimed at."""
        schedule: Literal["one_shot", "linear", "cubic"] = "one_shot"
        start: PositiveInt
        """The first step after which is pruned."""
        every: PositiveInt | None = None
        """Prune again every so many steps; None prunes once."""
        end: PositiveInt | None = None
        """The last step after which is pruned; None goes on to the end of training."""
        regrow: bool = False
        """Pruned weights go on training."""
        l1_lambda: NonNegativeFloat = 0.0
        """Adds lambda times the sum of |w| over all factors to the loss."""

        @model_validator(mode="after")
        def _consistent(self) -> Prune.Options:
            if self.schedule != "one_shot" and (self.every is None or self.end is None):
                raise ValueError(
                    f"schedule {self.schedule!r} needs every and end, found every={self.every!r}, end={self.end!r}"
                )
            if self.end is not None and (self.end <= self.start or self.every is None):
                raise ValueError(
                    f"end {self.end} with start {self.start} and every {self.every}; "
                    "allowed: an end after start, with every"
                )
            if self.method == "l1" and self.l1_lambda == 0:
                raise ValueError("method 'l1' needs l1_lambda; allowed: > 0")
            return self

    def setup(self) -> None:
        """Starts with no mask."""
        self._adapters: dict[str, nn.ModuleDict] = {}
        self.masks: dict[str, Tensor] = {}
        """What is held: factor name -> bool."""

    def check(self, chain: Any, model: nn.Module) -> None:
        """Refuses a chain that gives it no adapters, or some that it would not see."""
        adapters = [part for part in chain.parts if isinstance(part, AdapterPart)]
        before = chain.before(self)
        if not any(part in before for part in adapters):
            raise ConfigError(f"prune: no adapters before it in chain {chain.name}; allowed: behind lora, hira, lte")
        for part in adapters:
            if part not in before:
                raise ConfigError(f"prune: {part.name} stands behind it; allowed: behind all adapters, which it prunes")

    def attach(self, model: nn.Module, generator: torch.Generator) -> None:
        """Finds the factors and masks their gradients from then on; needs no randomness."""
        self._adapters = {f"{name}.adapters": layer.adapters for name, layer in adapted(model)}
        factors = self.factors()
        if self.options.method == "structured":
            for name in factors:
                if name[-2:] not in ("_A", "_B"):
                    raise ConfigError(f"prune: {name!r} is no factor A or B; allowed for 'structured': those two")
        if not self.options.regrow:
            for name, factor in factors.items():
                factor.register_hook(self._live(name))

    def penalty(self) -> Tensor:
        """lambda sum |w| over the factors of all adapters: ()."""
        factors = list(self.factors().values())
        if self.options.l1_lambda == 0:
            return torch.zeros((), device=factors[0].device)
        total: Tensor = torch.stack([factor.abs().sum() for factor in factors]).sum() * self.options.l1_lambda
        return total

    @torch.no_grad()
    def after_step(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Prunes where a pruning is due, and holds what was pruned before."""
        factors = self.factors()
        for name, mask in (self.prune(factors, step) or self.masks).items():
            factors[name].mul_(mask)

    def prune(self, factors: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        """The masks of the pruning that is due after `step`, held from then on; none where none is due.

        Args:
            factors: name -> factor, of every adapter.
            step: optimizer steps taken, from 1.
        """
        sparsity = self.sparsity_at(step)
        if sparsity is None:
            return {}
        masks = self._select(factors, sparsity)
        if not self.options.regrow:
            self.masks = masks
        return masks

    def stack(self, members: Sequence[Prune], model: nn.Module) -> StackedPrune:
        """Masks for all members, each pruned as if alone."""
        return StackedPrune(members, model)

    def sparsity_at(self, step: int) -> float | None:
        """The sparsity that is pruned to after `step`, or None where nothing is pruned.

        Args:
            step: optimizer steps taken, from 1.
        """
        o = self.options
        due = step == o.start or step == o.end
        if o.every is not None:
            due = due or (step > o.start and (step - o.start) % o.every == 0 and step < (o.end or math.inf))
        if not due:
            return None
        if o.schedule == "one_shot":
            return float(o.sparsity)
        left = 1 - (step - o.start) / (o.end - o.start)
        return float(o.sparsity * (1 - left ** (3 if o.schedule == "cubic" else 1)))

    def zeros(self) -> tuple[int, int]:
        """(weights that are exactly zero, all weights) over the factors of all adapters."""
        factors = self.factors().values()
        return sum(int((factor == 0).sum()) for factor in factors), sum(factor.numel() for factor in factors)

    def state_dict(self) -> dict[str, Any]:
        """The masks that are held: factor name -> bool tensor of its shape."""
        return dict(self.masks)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts the masks back.

        Raises:
            IntegrityError: a mask belongs to no factor, or has another shape.
        """
        factors = self.factors()
        for name, mask in state.items():
            if name not in factors or mask.shape != factors[name].shape:
                raise IntegrityError(f"prune: mask {name!r} of shape {tuple(mask.shape)} fits no adapter of the model")
        self.masks = {name: mask.to(factors[name].device) for name, mask in state.items()}

    def factors(self) -> dict[str, nn.Parameter]:
        """By name. Asked for each time, since a model that moves between devices may get other parameters."""
        held = self._adapters.items()
        return {f"{prefix}.{key}": factor for prefix, pairs in held for key, factor in pairs.named_parameters()}

    def _live(self, name: str) -> Callable[[Tensor], Tensor]:
        return lambda grad: grad * self.masks[name] if name in self.masks else grad

    def _select(self, factors: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        if self.options.method != "structured":
            keep = above_kth_largest if self.options.method == "topk" else above_quantile
            return {name: keep(factor, sparsity) for name, factor in factors.items()}
        masks: dict[str, Tensor] = {}
        for name, down in factors.items():
            if name.endswith("_A"):
                up_name = name.removesuffix("_A") + "_B"
                kept = strongest_components(down, factors[up_name], sparsity)
                masks[name] = kept.unsqueeze(-1).expand_as(down).clone()
                masks[up_name] = kept.unsqueeze(-2).expand_as(factors[up_name]).clone()
        return masks


def above_quantile(weight: Tensor, sparsity: float) -> Tensor:
    """Where |w| lies strictly above the quantile: bool, same shape.

    The linear quantile lies at or above the sorted value of index floor(s (n - 1)) and below the next
    one, so that "strictly above" means above that value: exact in every dtype, and without sorting.

    Args:
        weight: any shape, floating point.
        sparsity: s in [0, 1); 0 keeps everything.
    """
    size = weight.abs()
    if sparsity == 0:
        return torch.ones_like(size, dtype=torch.bool)
    index = math.floor(round(sparsity * (size.numel() - 1), 6))  # 0.29 * 100 is 29 here
    return size > size.flatten().kthvalue(index + 1).values


def above_kth_largest(weight: Tensor, sparsity: float) -> Tensor:
    """Where |w| is at or above the k-th largest, k = n - round(s n), at least 1: bool, same shape.

    Args:
        weight: any shape, floating point.
        sparsity: s in [0, 1).
    """
    size = weight.abs()
    gone = min(round(sparsity * size.numel()), size.numel() - 1)
    return size >= size.flatten().kthvalue(gone + 1).values


def strongest_components(down: Tensor, up: Tensor, sparsity: float) -> Tensor:
    """Which rank components stay, by ||A_i|| ||B_i||: bool, (..., rank).

    Args:
        down: (..., rank, in).
        up: (..., out, rank); leading axes (heads) are compared with each other.
        sparsity: round(s n) of the n components go; of equals, the earlier goes.
    """
    strength = down.norm(dim=-1) * up.norm(dim=-2)
    gone = strength.flatten().argsort(stable=True)[: round(sparsity * strength.numel())]
    kept = torch.ones(strength.numel(), dtype=torch.bool, device=strength.device)
    kept[gone] = False
    return kept.view_as(strength)
