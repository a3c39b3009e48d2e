"""One wrapper for every adapter: a base layer as it is stored, plus what parts add to it.

    y = base(x) + sum over adapters of adapter(x)

Parts meet here without knowing each other: one changes how the base is stored (`base`), others add
terms (`adapters`), another says how the input is kept for the weight gradient (`keep`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from lowrank.errors import ConfigError
from lowrank.targets import is_transposed


class AdaptedLinear(nn.Module):
    """A linear layer with adapters.

    Args:
        base: the layer that is wrapped; its own parameters stay where they are.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleDict()
        self.base_product: Callable[[Tensor], Tensor] | None = None
        """x (..., in) -> base output (..., out), where a part computes it another way; None asks the base."""
        self.keep: Any = None
        """How the input is kept for weight gradients; None keeps it as it is."""

    def dense_weight(self) -> Tensor:
        """The base weight as a dense (out, in) tensor; it makes the wrapper a linear layer to `lowrank.targets`."""
        return dense_weight(self.base)

    @property
    def weight(self) -> Tensor:
        """The same, under the name that a plain layer gives it."""
        return self.dense_weight()

    @property
    def bias(self) -> Tensor | None:
        """The base bias (out,), or None."""
        return cast("Tensor | None", getattr(self.base, "bias", None))

    @property
    def in_features(self) -> int:
        """Width of x."""
        return features(self.base)[0]

    @property
    def out_features(self) -> int:
        """Width of y."""
        return features(self.base)[1]

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> y (..., out). Each adapter may write into the y it is given."""
        y = self.base(x) if self.base_product is None else self.base_product(x)
        for adapter in self.adapters.values():
            y = adapter(x, y, self)
        return y

    def delta_weight(self) -> Tensor:
        """What the adapters add to the base weight, with scaling: (out, in)."""
        deltas = [cast(Any, adapter).delta_weight(self) for adapter in self.adapters.values()]
        return torch.stack(deltas).sum(0) if deltas else torch.zeros_like(self.weight)


def features(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear layer, however its weight is laid out."""
    if is_transposed(module):
        width_in, width_out = cast(Tensor, module.weight).shape
        return width_in, width_out
    return cast(int, module.in_features), cast(int, module.out_features)


def dense_weight(module: nn.Module) -> Tensor:
    """The weight as (out, in); a view where the layer stores it transposed, a copy where it is coded."""
    if hasattr(module, "dense_weight"):
        return cast(Tensor, cast(Any, module).dense_weight())
    weight = cast(Tensor, module.weight)
    return weight.t() if is_transposed(module) else weight


@torch.no_grad()
def add_to_weight(module: nn.Module, delta: Tensor) -> None:
    """W <- W + delta, in place; delta is (out, in). A coded base says itself how (`add_to_weight`)."""
    if hasattr(module, "add_to_weight"):
        cast(Any, module).add_to_weight(delta)
    else:
        weight = dense_weight(module)
        weight += delta  # summed in the wider dtype, rounded once


def adapt(model: nn.Module, name: str) -> AdaptedLinear:
    """Wraps the module called `name`, in every place where it stands, or returns the wrapper that is there."""
    module = model.get_submodule(name)
    if isinstance(module, AdaptedLinear):
        return module
    wrapper = AdaptedLinear(module)
    replace(model, module, wrapper)
    return wrapper


def add_adapter(model: nn.Module, name: str, kind: str, adapter: nn.Module) -> None:
    """Adds an adapter of a part to the layer called `name`.

    Raises:
        ConfigError: the layer already has one of that kind.
    """
    layer = adapt(model, name)
    if kind in layer.adapters:
        raise ConfigError(f"{name}: {kind} is attached already; attach a chain once")
    # A fresh module is in training mode, whatever the model is in.
    layer.adapters[kind] = adapter.train(layer.base.training)


@torch.no_grad()
def untie(model: nn.Module, module: nn.Module) -> None:
    """Gives `module` a weight of its own where another module holds the same one, as a tied lm_head does.

    Without this, folding a delta into the projection would change the embedding as well.
    """
    weight = module._parameters.get("weight")
    if weight is None:
        return
    holders = [other for other in model.modules() if other._parameters.get("weight") is weight]
    if len(holders) > 1:
        module._parameters["weight"] = nn.Parameter(weight.clone(), weight.requires_grad)


def adapted(model: nn.Module, kind: str | None = None) -> Iterator[tuple[str, AdaptedLinear]]:
    """Every wrapper with its name; of those, the ones with an adapter of that kind."""
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLinear) and (kind is None or kind in module.adapters):
            yield name, module


def strip(model: nn.Module) -> None:
    """Puts plain layers back where a wrapper has nothing left to do."""
    for _, layer in list(adapted(model)):
        if not layer.adapters and layer.keep is None and layer.base_product is None:
            replace(model, layer, layer.base)


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts `new` wherever `old` is registered, so that shared modules stay shared."""
    for parent in list(model.modules()):
        if parent is new:
            continue
        for key, child in list(parent._modules.items()):
            if child is old:
                parent._modules[key] = new
