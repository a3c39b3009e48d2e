"""ReLoRA: LoRA that is merged and started afresh every so many steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from lowrank.errors import ConfigError
from lowrank.methods.adapted import adapted, add_to_weight, features
from lowrank.methods.merging import base_weights, refuse_coded_base, refuse_other_optimizer, require_lora, untie_targets
from lowrank.methods.part import Part
from lowrank.spec import PartOptions, TrainSpec
from lowrank.strict import Fraction, NonNegativeInt, PositiveInt

_PUBLISHED_FRACTION = {"random": 0.999, "magnitude": 0.9}
"""The share of the optimizer's state that the published code zeroes, by way of choosing."""


class ReLora(Part):
    """Merges the adapters of `lora` into the base and draws them anew.

    Every `merge_every` steps: W <- W + (alpha / rank) B A; A <- LoRA's initialisation; B <- 0; and the
    optimizer's moments of A and B are pruned. The function stays as it is, and k merges give an update of
    rank at most k * rank.

    With `schedule: jagged_cosine` in the training settings, the learning rate of step t >= merge_every is
    the cosine's times min(1, (t mod merge_every + 1) / restart_warmup_steps).

    Source: Lialin et al. 2023, "ReLoRA: High-Rank Training Through Low-Rank Updates", section 3, algorithm 1.
    Departs from: Guitaricet/relora, which zeroes A as well as B when it wraps a model whose weights are kept,
    so that nothing trains before the first merge, and whose warm-up rises from 0 to the cosine's value at its
    end; here each step's factor is the cosine's of that step, and no step has a learning rate of 0.
    """

    name = "relora"
    knobs = {"m": "merge_every"}

    class Options(PartOptions):
        """When ReLoRA merges and what becomes of the optimizer's state."""

        merge_every: PositiveInt = 2000
        """Optimizer steps between two merges."""
        optimizer_state: Literal["random", "magnitude", "reset", "keep"] = "random"
        """Which moments of A and B are zeroed at a merge: drawn at random, the smallest, all, or none."""
        prune_fraction: Fraction | None = None
        """The share of moments that random and magnitude zero; None is the published 0.999 and 0.9."""
        restart_warmup_steps: NonNegativeInt = 100
        """Warm-up after each merge, under `schedule: jagged_cosine`."""

        @model_validator(mode="after")
        def _fraction_is_used(self) -> ReLora.Options:
            if self.prune_fraction is not None and self.optimizer_state not in _PUBLISHED_FRACTION:
                raise ValueError(
                    f"prune_fraction {self.prune_fraction!r} has no meaning with optimizer_state "
                    f"{self.optimizer_state!r}; allowed: with {' and '.join(_PUBLISHED_FRACTION)}"
                )
            return self

    def setup(self) -> None:
        """The generator comes with attach."""
        self._generator = torch.Generator()

    def check(self, chain: Any, model: nn.Module) -> None:
        """Refuses a chain without lora in front, a coded base, and moments that it cannot prune."""
        require_lora(chain, self)
        refuse_coded_base(chain, self)
        if self.options.optimizer_state != "keep":
            refuse_other_optimizer(chain, self)
        self._lora = chain["lora"]

    def attach(self, model: nn.Module, generator: torch.Generator) -> None:
        """Keeps the generator, and gives the targets weights of their own."""
        self._generator = generator
        untie_targets(model, "lora")

    def schedule(self, train: TrainSpec, total_steps: int) -> Callable[[int], float] | None:
        """The jagged cosine, where the training settings ask for it; else None, and theirs holds.

        Raises:
            ConfigError: restarts that do not fall on merges, or a warm-up that does not fit between two.
        """
        if train.schedule != "jagged_cosine":
            return None
        every, restart = self.options.merge_every, self.options.restart_warmup_steps
        if train.cycle_steps != every:
            raise ConfigError(
                f"relora: cycle_steps {train.cycle_steps} is not merge_every {every}; the learning rate restarts "
                "when the adapters do"
            )
        if restart >= every:
            raise ConfigError(f"relora: restart_warmup_steps {restart} does not end; allowed: 0 to {every - 1}")
        warmup, floor = train.warmup_steps, train.min_lr_fraction

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
            cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
            return cosine if step < every else cosine * min(1.0, (step % every + 1) / max(1, restart))

        return factor

    @torch.no_grad()
    def after_step(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Merges, draws the adapters anew and prunes their moments."""
        if step % self.options.merge_every:
            return
        for _, layer in adapted(model, "lora"):
            adapter: Any = layer.adapters["lora"]
            add_to_weight(layer.base, adapter.delta_weight(layer))
            adapter.lora_A.copy_(self._lora.new_adapter(*features(layer.base), self._generator).lora_A)
            adapter.lora_B.zero_()
            for parameter in (adapter.lora_A, adapter.lora_B):
                self._prune(optimizer, parameter)

    def _prune(self, optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> None:
        how, fraction = self.options.optimizer_state, self.options.prune_fraction
        if how == "keep":
            return
        if fraction is None:
            fraction = _PUBLISHED_FRACTION.get(how)
        for moment in optimizer.state.get(parameter, {}).values():
            if moment.shape != parameter.shape:
                continue  # the step count
            if how == "reset":
                moment.zero_()
            elif how == "random":
                drawn = torch.rand(moment.shape, generator=self._generator)
                moment *= (drawn > fraction).to(moment.device)
            else:
                size = moment.abs()
                moment *= size > torch.quantile(size.flatten().float(), fraction).to(size.dtype)

    def changed(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights that are merged into."""
        return base_weights(model, "lora")

    def state_dict(self) -> dict[str, Any]:
        """The generator, so that a resumed run draws what it would have drawn."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts the generator back."""
        self._generator.set_state(state["generator"])
