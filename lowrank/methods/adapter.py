"""What the parts that add adapters share: options, who trains, merging."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator
from torch import nn

from lowrank.errors import ConfigError
from lowrank.methods.adapted import adapt, adapted, add_adapter, add_to_weight, features, strip, untie
from lowrank.methods.part import Part
from lowrank.spec import PartOptions
from lowrank.targets import ALL_LINEAR, head_names, linear_names, select

Names = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]
"""One pattern or several; one alone means the same as a list of it, so both give the same run id."""


class AdapterOptions(PartOptions):
    """Options of every part that adds adapters to linear layers."""

    targets: Names = (ALL_LINEAR,)
    """`all-linear` (every linear layer of the trunk), or name patterns; see `lowrank.targets`."""
    head: Literal["frozen", "adapted", "trained"] = "trained"
    """The layers outside the trunk: left as they are, given adapters too, or trained whole."""
    bias: Literal["none", "all", "adapted"] = "none"
    """Which biases train: none, all of the model, or those of the adapted layers."""
    rest: Literal["frozen", "trained"] = "frozen"
    """Everything that is neither an adapted layer nor the head: embeddings, norms, other layers. Trained
    where a model is pre-trained from random weights, as ReLoRA and LTE do."""


class AdapterPart(Part):
    """Base of the parts that add one adapter module to each target.

    A subclass defines `new_adapter(in_features, out_features, generator)`; the module it returns has
    `forward(x, y, layer)` -> y plus its term, and `delta_weight(layer)` -> (out, in).
    """

    def new_adapter(self, in_features: int, out_features: int, generator: torch.Generator) -> nn.Module:
        """A fresh adapter for one layer; its parameters train."""
        raise TypeError(f"{type(self).__name__} does not say what its adapter is")  # pragma: no cover

    def setup(self) -> None:
        """Keeps what `merge` took off, so that `unmerge` can put it back."""
        self._merged: list[tuple[str, nn.Module]] = []

    def names(self, model: nn.Module) -> list[str]:
        """The layers that get an adapter, in model order."""
        chosen = set(select(model, self.options.targets))
        if self.options.head == "adapted":
            chosen |= set(linear_names(model, head=True))
        return [name for name, _ in model.named_modules() if name in chosen]

    def check(self, chain: Any, model: nn.Module) -> None:
        """Refuses targets that do not exist and a rank that a layer of the trunk cannot hold.

        The head is exempt: the LR-ratio document puts rank 128 on a 4-way classifier, where the
        surplus rank is redundant but changes the path that training takes.
        """
        heads = set(linear_names(model, head=True))
        if self.options.head == "adapted" and not heads:
            raise ConfigError(f"{self.name}: head: adapted, but {type(model).__name__} has no head")
        rank = getattr(self.options, "rank", None)
        for name in self.names(model):
            limit = min(features(model.get_submodule(name)))
            if rank is not None and name not in heads and rank > limit:
                raise ConfigError(f"{self.name}: rank {rank} is too large for {name!r}; allowed: 1 to {limit}")

    def attach(self, model: nn.Module, generator: torch.Generator) -> None:
        """Adds the adapters and unfreezes what trains beside them."""
        names = self.names(model)
        for name in names:
            layer = model.get_submodule(name)
            held = next(itertools.chain(layer.parameters(), layer.buffers()))  # a coded base has no parameters
            adapter = self.new_adapter(*features(getattr(layer, "base", layer)), generator)
            add_adapter(model, name, self.name, adapter.to(held.device))
        heads = head_names(model)
        if self.options.rest == "trained":
            apart = [layer for _, layer in adapted(model, self.name)] + [model.get_submodule(head) for head in heads]
            kept = {parameter for module in apart for parameter in module.parameters()}
            for parameter in set(model.parameters()) - kept:
                parameter.requires_grad_(True)
        if self.options.head == "trained":
            for head in heads:
                model.get_submodule(head).requires_grad_(True)
        for module_name, module in model.named_modules():
            bias = getattr(module, "bias", None)
            wanted = self.options.bias == "all" or (
                self.options.bias == "adapted" and module_name.removesuffix(".base") in names
            )
            if wanted and isinstance(bias, nn.Parameter):
                bias.requires_grad_(True)

    def merge(self, model: nn.Module) -> None:
        """W <- W + delta in every adapted layer, and the adapters come off."""
        for name, layer in list(adapted(model, self.name)):
            adapter: Any = layer.adapters[self.name]
            untie(model, layer.base)
            add_to_weight(layer.base, adapter.delta_weight(layer))
            self._merged.append((name, layer.adapters.pop(self.name)))
        strip(model)

    def unmerge(self, model: nn.Module) -> None:
        """W <- W - delta, and the adapters are on again. Exact up to the rounding of the sum."""
        for name, adapter in self._merged:
            layer = adapt(model, name)
            add_to_weight(layer.base, -adapter.delta_weight(layer))  # type: ignore[operator]
            layer.adapters[self.name] = adapter
        self._merged.clear()
