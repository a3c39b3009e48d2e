"""GaLore: the gradients of weight matrices are projected to a low rank, and so are the optimizer's moments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from lowrank.errors import ConfigError
from lowrank.methods.adapted import features
from lowrank.methods.adapter import Names
from lowrank.methods.bnb import bnb
from lowrank.methods.galore_optimizer import Base, GaloreOptimizer
from lowrank.methods.galore_projector import Projector
from lowrank.methods.part import Part
from lowrank.spec import PartOptions, TrainSpec
from lowrank.strict import PositiveFloat, PositiveInt
from lowrank.targets import ALL_LINEAR, select


class Galore(Part):
    """Trains what another part unfroze, with an optimizer that works in a subspace of the gradient.

    R = G Q (or P^T G),   W <- W - lr scale Adam(R) Q^T (or P Adam(R))

    P, Q (n, rank): the leading singular vectors of the gradient on the shorter side n, taken anew every
    `update_gap` steps; moments are not rotated at a switch. State per (m, n) matrix: n r + 2 m r numbers
    instead of 2 m n. GaLore brings the optimizer and nothing that trains: write `full+galore`, or
    `lte+galore`, whose stacked heads are projected head by head. What is trained beside the targets
    (embeddings, norms, biases, head) takes the plain step of the same base.

    The gradient is all that is used, so accumulation over micro-batches changes nothing.

    Source: Zhao et al. 2024, "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection",
    algorithm 2, eq. 11.
    Departs from: galore-torch 1.0. The projector comes from the Gram matrix and has its sign fixed: an
    update within one basis does not depend on the sign, but moments carried over a switch do. It is a
    copy, where galore-torch's view keeps the whole SVD factor alive. `eps` is added to the bias-corrected
    root, as torch's AdamW does and the paper's algorithm says, not to the uncorrected one. Weight decay
    uses the weight before the step, not after. `reverse` works at full rank too, where galore-torch mixes
    up the sides. `adamw8bit` steps the weights in their own precision and needs no CUDA.
    """

    name = "galore"
    knobs = {"r": "rank", "t": "update_gap", "x": "scale"}

    class Options(PartOptions):
        """The subspace, and the optimizer inside it."""

        rank: PositiveInt = 128
        update_gap: PositiveInt = 200
        """Optimizer steps between two bases."""
        scale: PositiveFloat = 0.25
        """Factor of a projected update, which acts as a learning rate of its own."""
        projector: Projector = "std"
        """Sides of the stored weight that are projected: the shorter (`std`), the longer (`reverse`), `left`
        (rows), `right` (columns), both (`full`), or none (`identity`: the base optimizer itself, a control)."""
        optimizer: Base = "adamw"
        """The base optimizer; `adamw8bit` needs bitsandbytes, `sgd` has no momentum."""
        eps: PositiveFloat | None = None
        """Adam's eps; None takes the run's. The paper says 1e-8, the released code 1e-6."""
        targets: Names = (ALL_LINEAR,)
        """Layers whose matrices, or whose adapters' matrices, are projected; see `lowrank.targets`."""
        excess_rank: Literal["refuse", "clip"] = "refuse"
        """A rank that a matrix cannot hold: refused, or cut to its shorter side, as galore-torch does without
        a word. At its shorter side the projection is a mere rotation."""

    def check(self, chain: Any, model: nn.Module) -> None:
        """Refuses a chain in which no target trains, and a rank that a target cannot hold."""
        self._names = select(model, self.options.targets)
        others = [part for part in chain.parts if part is not self]
        if not any(part.name == "full" or hasattr(part.options, "targets") for part in others):
            raise ConfigError(
                f"galore: chain {chain.name} trains no weight matrix that galore could project; galore brings only "
                "the optimizer, so put a part that trains beside it, as in full+galore or lte+galore"
            )
        ranks = [part.options.rank for part in others if hasattr(part.options, "rank")]
        for name in self._names:
            self._refuse(name, min(*features(model.get_submodule(name)), *ranks))
        if self.options.optimizer == "adamw8bit":
            try:
                bnb()
            except ImportError as error:
                raise ConfigError(f"galore: optimizer adamw8bit needs bitsandbytes, which fails: {error}") from None

    def attach(self, model: nn.Module, generator: torch.Generator) -> None:
        """Keeps hold of the model, whose targets the optimizer asks for."""
        self._model = model

    def optimizer(self, named: Sequence[tuple[str, nn.Parameter]], train: TrainSpec) -> torch.optim.Optimizer:
        """The projecting optimizer over the trainable parameters.

        Args:
            named: the parameters that train, by name.
            train: lr, betas, eps and weight decay.

        Raises:
            ConfigError: no matrix of a target trains, or one is too small for the rank.
        """
        matrices = {id(p) for name in self._names for p in self._model.get_submodule(name).parameters() if p.ndim > 1}
        projected = [(name, parameter) for name, parameter in named if id(parameter) in matrices]
        if not projected:
            shown = ", ".join(self.options.targets)
            raise ConfigError(f"galore: no matrix of the targets {shown} trains; {len(named)} other parameters do")
        for name, parameter in projected:
            self._refuse(name, min(parameter.shape[-2:]))
        return GaloreOptimizer(
            [parameter for _, parameter in projected],
            [parameter for _, parameter in named if id(parameter) not in matrices],
            rank=self.options.rank,
            update_gap=self.options.update_gap,
            scale=self.options.scale,
            projector=self.options.projector,
            base=self.options.optimizer,
            lr=train.lr,
            betas=train.betas,
            eps=self.options.eps or train.eps,
            weight_decay=train.weight_decay,
        )

    def _refuse(self, name: str, limit: int) -> None:
        """Refuses a rank above the limit of a matrix; the identity has no rank."""
        options = self.options
        if options.rank > limit and options.excess_rank == "refuse" and options.projector != "identity":
            raise ConfigError(
                f"galore: rank {options.rank} is too large for {name!r}; allowed: 1 to {limit}, or excess_rank: clip"
            )
