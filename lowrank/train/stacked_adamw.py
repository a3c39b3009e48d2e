"""AdamW over the stacked tensors of K members, each with its own learning rate, weight decay and clipping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.spec import TrainSpec
from lowrank.train.schedules import schedule


class StackedAdamW:
    """All trained tensors of one dtype lie in one (K, P) matrix, a member a row; a step is a few products over it.

    u_k = -m_k / (sqrt(v_k) + eps), bias-corrected,   w_k <- (1 - lr_k wd_k) w_k + lr_k u_k

    u comes from torch's fused AdamW at learning rate 1. The gradients lie in such a matrix too, to which a backward
    pass adds: none is ever None, and none is copied. Nothing waits for the device, nothing loops over members or
    tensors, and where a step stands is read on the device: each step is the same calls, as a CUDA graph asks for.

    Args:
        parameters: name -> (K, ...); they are moved into the matrix.
        trains: the members' settings, alike in betas and eps.
        total_steps: of each.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], trains: Sequence[TrainSpec], total_steps: int) -> None:
        device = next(iter(parameters.values())).device
        first = trains[0]
        kinds: dict[torch.dtype, dict[str, nn.Parameter]] = {}
        for name, parameter in parameters.items():
            kinds.setdefault(parameter.dtype, {})[name] = parameter
        self.slabs = [_Slab(held, first) for held in kinds.values()]
        self.factors = _factors(trains, total_steps)
        """Of the learning rate: one list a member, one value a step."""
        factors = torch.tensor(self.factors, dtype=torch.float64)
        lrs = torch.tensor([train.lr for train in trains], dtype=torch.float64).unsqueeze(1) * factors
        decays = lrs * torch.tensor([train.weight_decay for train in trains], dtype=torch.float64).unsqueeze(1)
        self.taken = torch.zeros(1, dtype=torch.int64, device=device)
        # (steps, K, 1) on the device, so that a step copies nothing there.
        self.lrs = lrs.t().unsqueeze(-1).to(device)
        self.shrinks = (1 - decays).t().unsqueeze(-1).to(device) if decays.any() else None
        limits = [torch.inf if train.clip_norm is None else train.clip_norm for train in trains]
        self.limits = torch.tensor(limits, dtype=torch.float64, device=device) if min(limits) < torch.inf else None

    @torch.no_grad()
    def step(self) -> None:
        """Clips each member's gradient, moves its weights, and clears the gradients."""
        if self.limits is not None:
            norms = torch.stack([slab.grad.norm(dim=1).double() for slab in self.slabs]).norm(dim=0)  # (K,)
            factor = (self.limits / (norms + 1e-6)).clamp(max=1.0).unsqueeze(1)
            for slab in self.slabs:
                slab.grad.mul_(factor.to(slab.exact))
        lr = self.lrs.index_select(0, self.taken).squeeze(0)
        shrink = None if self.shrinks is None else self.shrinks.index_select(0, self.taken).squeeze(0)
        for slab in self.slabs:
            slab.move(lr, shrink)
        self.taken += 1

    @torch.no_grad()
    def freeze(self, member: int) -> None:
        """A member that diverged stands still at zero from now on, so that nothing it computes overflows."""
        self.lrs[:, member] = 0.0
        for slab in self.slabs:
            for held in (slab.weight, slab.grad, *slab.moments()):
                held[member] = 0.0

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """`exp_avg` and `exp_avg_sq` -> name -> (K, ...)."""
        found: dict[str, dict[str, Tensor]] = {"exp_avg": {}, "exp_avg_sq": {}}
        for slab in self.slabs:
            for held, moment in zip(found.values(), slab.moments(), strict=True):
                held |= slab.views(moment)
        return found

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """torch's own, which holds the moments."""
        return self.slabs[0].inner

    def resume(self, steps: int) -> None:
        """Sets how many steps were taken; the moments are to be filled by the caller."""
        self.taken.fill_(steps)
        for slab in self.slabs:
            slab.inner.state[slab.update]["step"].fill_(steps)


class _Slab:
    """The tensors of one dtype, side by side: (K, P)."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], train: TrainSpec) -> None:
        self.shapes = {name: parameter.shape for name, parameter in parameters.items()}
        first = next(iter(parameters.values()))
        size = sum(shape.numel() for shape in self.shapes.values()) // len(first)
        self.weight = first.new_empty((len(first), size))
        self.exact = torch.promote_types(first.dtype, torch.float32)  # bfloat16 would round a learning rate
        self.grad = torch.zeros_like(self.weight)
        self.update = nn.Parameter(torch.zeros_like(self.weight))
        self.update.grad = self.grad
        gradients = self.views(self.grad)
        with torch.no_grad():
            for name, view in self.views(self.weight).items():
                view.copy_(parameters[name])
                parameters[name].data = view
                parameters[name].grad = gradients[name]
        self.inner = torch.optim.AdamW(
            [self.update],
            lr=1.0,
            betas=train.betas,
            eps=train.eps,
            weight_decay=0.0,
            fused=True,
            capturable=first.is_cuda,
        )
        state = self.inner.state[self.update]
        state["step"] = torch.zeros((), dtype=torch.float32, device=self.weight.device)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(self.weight), torch.zeros_like(self.weight)

    def views(self, matrix: Tensor) -> dict[str, Tensor]:
        """Name -> (K, ...): the parts of a (K, P) matrix."""
        sizes = [shape[1:].numel() for shape in self.shapes.values()]
        parts = zip(self.shapes.items(), matrix.split(sizes, dim=1), strict=True)
        return {name: part.unflatten(1, shape[1:]) for (name, shape), part in parts}

    def moments(self) -> tuple[Tensor, Tensor]:
        """exp_avg and exp_avg_sq, (K, P)."""
        state: dict[str, Any] = self.inner.state[self.update]
        return state["exp_avg"], state["exp_avg_sq"]

    def move(self, lr: Tensor, shrink: Tensor | None) -> None:
        """lr and 1 - lr * weight decay: (K, 1)."""
        self.update.zero_()
        self.inner.step()
        self.grad.zero_()
        if shrink is not None:
            self.weight.mul_(shrink.to(self.exact))
        if self.exact == self.weight.dtype:
            self.weight.addcmul_(self.update, lr.to(self.exact))
        else:
            self.weight.add_(self.update * lr.to(self.exact))


def _factors(trains: Sequence[TrainSpec], total_steps: int) -> list[list[float]]:
    """Each member's schedule, step by step; those that share one share the list."""
    known: dict[tuple[object, ...], list[float]] = {}
    found = []
    for train in trains:
        course = (train.schedule, train.warmup_steps, train.min_lr_fraction, train.cycle_steps)
        if course not in known:
            known[course] = list(map(schedule(train, total_steps), range(total_steps)))
        found.append(known[course])
    return found
