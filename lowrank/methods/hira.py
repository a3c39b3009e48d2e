"""HiRA: the frozen weight times a trained low-rank matrix, entry by entry."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lowrank.errors import ConfigError
from lowrank.methods.adapted import AdaptedLinear, adapt, adapted, dense_weight
from lowrank.methods.adapter import AdapterOptions, AdapterPart
from lowrank.methods.hira_stack import StackedHira, adapted_weight
from lowrank.methods.keep import in_use, to_save, weight_gradient
from lowrank.methods.part import Part
from lowrank.strict import PositiveInt


class Hira(AdapterPart):
    """Multiplies each target's weight by one plus a low-rank matrix.

    h = (W0 + W0 * (B A)) x + b, with * entry by entry, and no alpha / rank

    `hira_A` (rank, in) ~ U(-1/sqrt(in), 1/sqrt(in)), `hira_B` (out, rank) = 0, so attaching changes
    nothing. rank * (in + out) parameters a layer; the update's rank is up to rank * rank(W0).

    Source: Huang et al. 2025, "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation", eq. 4.
    Departs from: PEFT, which multiplies x by W0 and by W0 * (B A) apart, five products a layer where three do,
    and saves the second matrix. So there is no dropout on the second product here: it is not formed.
    """

    name = "hira"
    knobs = {"r": "rank"}
    varies = frozenset({"rank"})

    class Options(AdapterOptions):
        """rank and form of HiRA."""

        rank: PositiveInt = 32
        form: Literal["residual", "product"] = "residual"
        """`product` leaves W0 out, h = (W0 * (B A)) x + b, as the comparison's README defines HiRA. As B starts
        at 0, the adapted layers of such a network give nothing but their biases at first."""

    def setup(self) -> None:
        """Keeps the weights that `merge` overwrites: dividing by 1 + B A would not give their bits back."""
        super().setup()
        self._originals: dict[str, Tensor] = {}

    def new_adapter(self, in_features: int, out_features: int, generator: torch.Generator) -> nn.Module:
        """A HiRA adapter for one layer."""
        return HiraAdapter(in_features, out_features, generator, self.options)

    def check(self, chain: Any, model: nn.Module) -> None:
        """Refuses a base that changes under it: what multiplies W0 means something else when W0 moves."""
        super().check(chain, model)
        for part in chain.parts:
            if part is not self and (part.name == "full" or isinstance(part, AdapterPart)):
                raise ConfigError(f"hira: {part.name} changes the weight that hira multiplies; allowed: one of the two")

    def attach(self, model: nn.Module, generator: torch.Generator) -> None:
        """Adds the adapters, which compute the base product too."""
        super().attach(model, generator)
        for _, layer in adapted(model, self.name):
            layer.base_product = _Product(layer)

    def stack(self, members: Sequence[Part], model: nn.Module) -> Part:
        """Nothing to do but what `HiraAdapter.stacked` does."""
        return self

    def merge(self, model: nn.Module) -> None:
        """W <- W * (1 + B A) in every adapted layer, and the adapters come off."""
        for name, layer in adapted(model, self.name):
            self._originals[name] = layer.weight.clone()
            layer.base_product = None
        super().merge(model)

    def unmerge(self, model: nn.Module) -> None:
        """W <- W0, bit for bit, and the adapters are on again."""
        for name, adapter in self._merged:
            layer = adapt(model, name)
            dense_weight(layer.base).copy_(self._originals.pop(name))
            layer.adapters[self.name] = adapter
            layer.base_product = _Product(layer)
        self._merged.clear()


class HiraAdapter(nn.Module):
    """The two factors of one layer.

    Args:
        in_features: width of x.
        out_features: width of y.
        generator: draws hira_A.
        options: rank and form.
    """

    keeps_input = True
    """The gradient of the factors asks `layer.keep` for the input."""

    def __init__(self, in_features: int, out_features: int, generator: torch.Generator, options: Any) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        uniform = torch.rand(options.rank, in_features, generator=generator)
        self.hira_A = nn.Parameter(uniform.mul_(2 * bound).sub_(bound))
        self.hira_B = nn.Parameter(torch.zeros(out_features, options.rank))
        self.residual = options.form == "residual"

    def forward(self, x: Tensor, y: Tensor, layer: AdaptedLinear) -> Tensor:
        """y as it is: the adapted weight is in the base product already."""
        return y

    def delta_weight(self, layer: AdaptedLinear) -> Tensor:
        """What the adapter adds to W0: (out, in)."""
        weight = layer.weight
        return adapted_weight(weight, self.hira_A, self.hira_B, self.residual) - weight

    def product(self, x: Tensor, layer: AdaptedLinear) -> Tensor:
        """x (..., in) -> the product with the adapted weight, and bias: (..., out)."""
        apply = cast("Callable[..., Tensor]", _HadamardLinear.apply)
        return apply(x, layer.bias, self.hira_A, self.hira_B, layer.base, self.residual, in_use(layer.keep))

    def stacked(self, members: Sequence[HiraAdapter]) -> nn.Module:
        """The adapters of K members as one."""
        return StackedHira(members)


class _Product:
    """x -> the product with the adapted weight; an object, so that a deep copy of the model copies it too."""

    def __init__(self, layer: AdaptedLinear) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        adapter: Any = self.layer.adapters["hira"]
        return cast(Tensor, adapter.product(x, self.layer))


class _HadamardLinear(torch.autograd.Function):
    """y = (W + W * (B A)) x + b in one product, and its gradients in two.

    Saved: x (or its sources, or what `keep` makes of it). The adapted weight is formed again in the backward
    pass: rank / N of a product, against a copy of every weight.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, base: nn.Module, residual: bool, keep: Any
    ) -> Tensor:
        weight = dense_weight(base)
        ctx.restore, saved = to_save(keep, x, x)
        ctx.save_for_backward(A, B, *saved)
        ctx.base, ctx.residual, ctx.keep, ctx.dtype = base, residual, keep, x.dtype
        return functional.linear(x, adapted_weight(weight, A, B, residual).to(weight.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        A, B, *saved = ctx.saved_tensors
        kept = ctx.restore(*saved)
        weight = dense_weight(ctx.base)
        flat = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ adapted_weight(weight, A, B, ctx.residual).to(grad.dtype)).to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            grad_bias = flat.sum(0).to(weight.dtype)
        grad_product = (weight_gradient(ctx.keep, flat, kept).to(A.dtype) * weight).to(A.dtype)
        return grad_x, grad_bias, B.t() @ grad_product, grad_product @ A.t(), None, None, None
