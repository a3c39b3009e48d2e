"""The optimizer of GaLore: a base optimizer whose moments live in a projected space."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from lowrank.methods.bnb import bnb, dynamic_map
from lowrank.methods.galore_projector import Projector, bases, fold_

Base = Literal["adamw", "adam", "sgd", "adamw8bit"]

MIN_8BIT_NUMEL = 4096
"""Smaller moments stay in float32, as in bitsandbytes: they cost nothing and quantise badly."""
QUANTILE_BLOCK = 256
"""Entries that share one scale in an 8-bit moment; fixed by the kernel of bitsandbytes."""


class GaloreOptimizer(torch.optim.Optimizer):
    """A first-order optimizer whose gradients and moments live in a low-rank subspace.

    R = P^T G Q,   N = base(R),   W <- (1 - lr weight_decay) W + lr scale P N Q^T

    P (rows, rank) and Q (cols, rank) hold leading singular vectors of the gradient of every
    `update_gap`-th step; on the sides that `projector` names, the other side is the identity. Moments are
    carried over a switch of the basis as they are. A stacked parameter (K, rows, cols) is projected
    slice by slice. Parameters without a projector take the plain step of the same base.

    The whole state is in `state` as tensors and integers, so `state_dict` resumes bit for bit.

    Args:
        projected: matrices (..., rows, cols) that are projected.
        plain: parameters that are not.
        rank: width of the subspace; a matrix with a shorter side uses that.
        update_gap: steps between two bases.
        scale: factor of a projected update.
        projector: which sides are projected; see `sides`.
        base: what turns a projected gradient into a step.
        lr, betas, eps, weight_decay: as in `torch.optim.AdamW`.
    """

    def __init__(
        self,
        projected: Iterable[nn.Parameter],
        plain: Iterable[nn.Parameter],
        *,
        rank: int,
        update_gap: int = 200,
        scale: float = 0.25,
        projector: Projector = "std",
        base: Base = "adamw",
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        galore = {"rank": rank, "update_gap": update_gap, "scale": scale, "projector": projector}
        groups: list[dict[str, Any]] = [{"params": list(projected), **galore}, {"params": list(plain)}]
        shared = {"base": base, "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__([group for group in groups if group["params"]], shared)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step from the gradients that are there."""
        for group in self.param_groups:
            held = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in held:
                state = self.state[parameter]
                state["step"] = state.get("step", 0) + 1
            if "rank" in group:
                # One at a time, so that only one matrix has its temporaries alive.
                for parameter in held:
                    self._step_projected(parameter, group)
            else:
                decay = 0.0 if group["base"] == "adam" else group["weight_decay"]
                states = [self.state[parameter] for parameter in held]
                base_step(held, [_gradient(p, group) for p in held], states, group, group["lr"], decay)

    def _step_projected(self, parameter: nn.Parameter, group: Mapping[str, Any]) -> None:
        state, gradient = self.state[parameter], _gradient(parameter, group)
        if (state["step"] - 1) % group["update_gap"] == 0:
            state |= bases(gradient, group["rank"], group["projector"])
        left, right = state.get("projector_left"), state.get("projector_right")
        projected = gradient if left is None else left.mT @ gradient
        projected = projected if right is None else projected @ right
        # The base steps a matrix of zeros with lr 1, which leaves its direction there: one code path
        # for projected and plain parameters, and the fused kernel for both.
        direction = torch.zeros_like(projected, memory_format=torch.contiguous_format)
        base_step([direction], [projected.contiguous()], [state], group, 1.0, 0.0)
        decay = 0.0 if group["base"] == "adam" else group["lr"] * group["weight_decay"]
        fold_(parameter, direction, left, right, beta=1 - decay, alpha=group["lr"] * group["scale"])

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` gave, bit for bit.

        torch casts floating state to the dtype of its parameter, which would change 8-bit codes and
        their float32 scales; so the tensors are put back as they were saved.
        """
        super().load_state_dict(dict(state_dict))
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, saved in state_dict["state"].items():
            parameter = parameters[int(index)]
            self.state[parameter] = {
                key: value.to(parameter.device, copy=True) if isinstance(value, Tensor) else value
                for key, value in saved.items()
            }


def _gradient(parameter: nn.Parameter, group: Mapping[str, Any]) -> Tensor:
    """The gradient; with Adam's coupled weight decay in it where the base is Adam."""
    gradient = parameter.grad
    assert gradient is not None
    if group["base"] == "adam" and group["weight_decay"] > 0:
        return gradient.add(parameter, alpha=group["weight_decay"])
    return gradient


def base_step(
    targets: list[Any], gradients: list[Tensor], states: list[Any], group: Mapping[str, Any], lr: float, decay: float
) -> None:
    """One step of the base optimizer, in place.

    Args:
        targets: what is stepped: parameters, or zeros that the direction is left in.
        gradients: one for each target, of its shape and dtype.
        states: one dict for each target, with `step` counted already; moments are made at first use.
        group: `base`, `betas` and `eps`.
        lr: learning rate.
        decay: decoupled weight decay.
    """
    if group["base"] == "sgd":
        for target, gradient in zip(targets, gradients, strict=True):
            target.mul_(1 - lr * decay).add_(gradient, alpha=-lr)
        return
    floats = []
    for index, (target, gradient, state) in enumerate(zip(targets, gradients, states, strict=True)):
        if group["base"] == "adamw8bit" and gradient.numel() >= MIN_8BIT_NUMEL:
            _step_8bit(target, gradient, state, group, lr, decay)
            continue
        if "exp_avg" not in state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        floats.append(index)
    if not floats:
        return
    chosen = [states[index] for index in floats]
    adamw(
        [targets[index] for index in floats],
        [gradients[index] for index in floats],
        [state["exp_avg"] for state in chosen],
        [state["exp_avg_sq"] for state in chosen],
        [],
        # The kernel counts up before it steps.
        [torch.full((), state["step"] - 1.0, device=state["exp_avg"].device) for state in chosen],
        fused=True,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=lr,
        weight_decay=decay,
        eps=group["eps"],
        maximize=False,
    )


def _step_8bit(
    target: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any], lr: float, decay: float
) -> None:
    if "codes_1" not in state:
        blocks = -(-gradient.numel() // QUANTILE_BLOCK)
        for moment in ("1", "2"):
            state[f"codes_{moment}"] = torch.zeros_like(gradient, dtype=torch.uint8)
            state[f"scales_{moment}"] = torch.zeros(blocks, dtype=torch.float32, device=gradient.device)
    signed, unsigned = (dynamic_map(gradient.device, signed=signed) for signed in (True, False))
    bnb().functional.optimizer_update_8bit_blockwise(
        "adam",
        gradient,
        target,
        state["codes_1"],
        state["codes_2"],
        *group["betas"],
        0.0,  # beta3 and alpha belong to another optimizer that shares the kernel
        0.0,
        group["eps"],
        state["step"],
        lr,
        signed,
        unsigned,
        state["scales_1"],
        state["scales_2"],
        weight_decay=decay,
    )
