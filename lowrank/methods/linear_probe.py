"""Linear probe: only the head trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lowrank.errors import ConfigError
from lowrank.methods.part import Part
from lowrank.spec import PartOptions
from lowrank.targets import head_names


class LinearProbe(Part):
    """Trains the layers outside the trunk and nothing else: the control that every adapter must beat."""

    name = "linear_probe"

    class Options(PartOptions):
        """A linear probe has nothing to set."""

    def check(self, chain: Any, model: nn.Module) -> None:
        """Refuses a model without a head."""
        if not head_names(model):
            raise ConfigError(f"linear_probe: {type(model).__name__} has no head outside its trunk to train")

    def attach(self, model: nn.Module, generator: torch.Generator) -> None:
        """Unfreezes the head."""
        for head in head_names(model):
            model.get_submodule(head).requires_grad_(True)

    def stack(self, members: Sequence[Part], model: nn.Module) -> Part:
        """Nothing to do: the heads of the members are one layer already."""
        return self
