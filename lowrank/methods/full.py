"""Full fine-tuning: everything trains."""

from __future__ import annotations

import torch
from torch import nn

from lowrank.methods.part import Part
from lowrank.spec import PartOptions


class Full(Part):
    """Trains every parameter of the model, as in ordinary fine-tuning and pre-training."""

    name = "full"

    class Options(PartOptions):
        """Full fine-tuning has nothing to set."""

    def attach(self, model: nn.Module, generator: torch.Generator) -> None:
        """Unfreezes everything."""
        model.requires_grad_(True)
