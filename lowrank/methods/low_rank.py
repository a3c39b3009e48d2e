"""Plain low-rank training: each weight is a product of two factors from the start, and only they train."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.errors import ConfigError
from lowrank.methods.adapted import dense_weight, replace
from lowrank.methods.adapter import AdapterPart, Names
from lowrank.methods.drift import Drift, drift_of
from lowrank.methods.part import Part
from lowrank.spec import PartOptions
from lowrank.strict import PositiveInt
from lowrank.targets import ALL_LINEAR, is_transposed, select


class LowRank(Part):
    """Replaces the weight of each target by two factors, which train.

    y = B A x + b    with A (rank, in), B (out, rank)

    Unlike LoRA, nothing of full rank is left underneath: rank * (in + out) numbers a layer, in the weight, its
    gradient and the optimizer's state. The start is the best approximation of rank `rank` of the base weight
    W ~ U S V^T: B = U S^(1/2), A = S^(1/2) V^T; `drift` tells how far each weight moved by that. Where the base
    is random, this gives the factors the scale that the architecture was given. What is not a target
    (embeddings, norms, biases) trains where another part says so, as in full+low_rank.

    Source: Kamalakara et al. 2022, "Exploring Low Rank Training of Deep Neural Networks", section 2, with the
    spectral initialisation of Khodak et al. 2021; the row "Low-Rank" of Zhao et al. 2024 (GaLore), table 2.
    """

    name = "low_rank"
    knobs = {"r": "rank"}

    class Options(PartOptions):
        """How large the factors are."""

        targets: Names = (ALL_LINEAR,)
        """`all-linear` (every linear layer of the trunk), or name patterns; see `lowrank.targets`."""
        rank: PositiveInt = 128

    def setup(self) -> None:
        """Nothing is replaced yet."""
        self.drift: dict[str, Drift] = {}

    def check(self, chain: Any, model: nn.Module) -> None:
        """Refuses layers that cannot be factored so, a rank they cannot hold, and parts that add to a weight."""
        for part in chain.parts:
            if isinstance(part, AdapterPart) or part.name == "nf4":
                raise ConfigError(
                    f"low_rank: no weight is left that {part.name} could work on; "
                    "allowed beside it: parts that train, or that bring an optimizer"
                )
        holders = [id(parameter) for owner in model.modules() for parameter in owner._parameters.values()]
        for name in select(model, self.options.targets):
            module: Any = model.get_submodule(name)
            if type(module) is not nn.Linear and not is_transposed(module):
                raise ConfigError(f"low_rank: {name!r} is a {type(module).__name__}; allowed: Linear, Conv1D")
            limit = min(dense_weight(module).shape)
            if self.options.rank > limit:
                raise ConfigError(
                    f"low_rank: rank {self.options.rank} is too large for {name!r}; allowed: 1 to {limit}"
                )
            if holders.count(id(module.weight)) > 1:
                raise ConfigError(f"low_rank: the weight of {name!r} is tied; leave it out of the targets")

    def attach(self, model: nn.Module, generator: torch.Generator) -> None:
        """Replaces each target by its factors; needs no randomness of its own."""
        for name in select(model, self.options.targets):
            module = model.get_submodule(name)
            layer = FactoredLinear(module, self.options.rank)
            if layer.factor_A.device.type != "meta":
                self.drift[name] = drift_of(layer.dense_weight(), dense_weight(module))
            replace(model, module, layer)

    def merge(self, model: nn.Module) -> None:
        """Plain layers with the weight B A."""
        self._merged = list(_factored(model))
        for _, layer in self._merged:
            replace(model, layer, layer.plain())

    def unmerge(self, model: nn.Module) -> None:
        """The factors are back as they were."""
        for name, layer in self._merged:
            replace(model, model.get_submodule(name), layer)


class FactoredLinear(nn.Module):
    """y = B A x + b.

    Args:
        base: Linear or Conv1D; its bias is kept, its weight gives the factors their start.
        rank: of the factors.
    """

    @torch.no_grad()
    def __init__(self, base: nn.Module, rank: int) -> None:
        super().__init__()
        weight = dense_weight(base)
        self.out_features, self.in_features = weight.shape
        self.transposed = is_transposed(base)
        # In float32 at least: half precision has no SVD.
        U, S, Vh = torch.linalg.svd(weight if weight.dtype == torch.float64 else weight.float(), full_matrices=False)
        # The largest entry of each u is positive, so that the factors depend on no library's choice of signs.
        signs = torch.where(U.gather(0, U.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0).to(U.dtype)
        U, Vh = U * signs, Vh * signs.t()
        root = S[:rank].sqrt()
        # Row by row, as checkpoints hold tensors: LAPACK's columns would give a fused optimizer a parameter and a
        # state, once that is read back, of different strides.
        self.factor_A = nn.Parameter((root[:, None] * Vh[:rank]).to(weight.dtype).contiguous())
        self.factor_B = nn.Parameter((U[:, :rank] * root).to(weight.dtype).contiguous())
        self.bias: nn.Parameter | None = base.bias  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> y (..., out)."""
        return functional.linear(functional.linear(x, self.factor_A), self.factor_B, self.bias)

    def dense_weight(self) -> Tensor:
        """B A: (out, in)."""
        return self.factor_B @ self.factor_A

    @torch.no_grad()
    def plain(self) -> nn.Module:
        """A layer of the kind it was, with the weight B A."""
        weight = self.dense_weight()
        layer: nn.Module
        if self.transposed:
            from transformers.pytorch_utils import Conv1D

            layer = Conv1D(self.out_features, self.in_features)
            weight = weight.t().contiguous()
        else:
            layer = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        layer.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
        layer.register_parameter("bias", self.bias)
        return layer


def _factored(model: nn.Module) -> Iterator[tuple[str, FactoredLinear]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, FactoredLinear))
