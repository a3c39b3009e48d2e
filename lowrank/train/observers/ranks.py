"""The rank of what training has added to each weight, before and after each merge."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lowrank.measure.weights import base_weights, trunk_weights
from lowrank.strict import PositiveInt, Strict
from lowrank.train.observer import Observer, Row


class Ranks(Observer):
    """Singular values of the accumulated update of every linear layer of the trunk.

    With W_0 the weight before training, s_i the singular values and p_i = s_i / sum(s), the row of a layer has

    - `norm`: ||D||_F
    - `rank`: how many s_i > s_1 max(out, in) eps, with eps of float32
    - `effective_rank`: exp(-sum p_i ln p_i), between 1 and `rank`
    - `singular_values`: the largest `keep`

    of D = W + delta - W_0, the whole update (`part` total), and, under adapters, of W - W_0, what was merged into the
    base (`part` base). Rows are written every `every` steps, before and after the parts act (`moment`), so that a
    merge which changes the function shows as a difference of the whole update.

    Source: Roy & Vetterli 2007, "The effective rank: A measure of effective dimensionality", eq. 3.
    """

    name = "ranks"

    class Options(Strict):
        """When, and how much of a spectrum is kept."""

        every: PositiveInt = 100
        """Optimizer steps between two looks; set it to the chain's `merge_every`."""
        keep: PositiveInt = 64
        """Singular values that are written, the largest first."""

    def begin(self, model: nn.Module) -> None:
        """Copies the weights before training."""
        self._start = trunk_weights(model)

    def before_parts(self, model: nn.Module, step: int) -> list[Row]:
        """The rows before a merge."""
        return self._rows(model, step, "before")

    def after_parts(self, model: nn.Module, step: int) -> list[Row]:
        """The rows after it."""
        return self._rows(model, step, "after")

    def _rows(self, model: nn.Module, step: int, moment: str) -> list[Row]:
        if step % self.options.every:
            return []
        return [
            {"step": step, "moment": moment, "layer": layer, "part": part, **self._facts(delta)}
            for layer, part, delta in self._deltas(model)
        ]

    def _deltas(self, model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
        for part, weights in (("total", trunk_weights(model)), ("base", base_weights(model))):
            for layer, weight in weights.items():
                yield layer, part, weight - self._start[layer]

    def _facts(self, delta: Tensor) -> Row:
        if not torch.isfinite(delta).all():  # the run has diverged, which the loop will see
            return {"norm": None, "rank": None, "effective_rank": None, "singular_values": []}
        values = torch.linalg.svdvals(delta.double().cpu())
        present = values[values > values[0] * max(delta.shape) * torch.finfo(torch.float32).eps]
        shares = present / present.sum()
        return {
            "norm": values.square().sum().sqrt().item(),
            "rank": len(present),
            "effective_rank": (-(shares * shares.log()).sum()).exp().item() if len(present) else 0.0,
            "singular_values": values[: self.options.keep].tolist(),
        }
