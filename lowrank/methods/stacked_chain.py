"""The chains of K members as one chain on one model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lowrank.errors import ConfigError
from lowrank.methods.chain import Chain
from lowrank.methods.stacked import corner, stack_models


class StackedChain(Chain):
    """Acts for K members at once: its parts are what each part's hook `stack` gives.

    A trained tensor has the members along its leading axis and, under the name that it has in a member alone,
    zeros where a member's own is smaller. What parts keep beside the weights stays in the members' parts.

    Args:
        chain: attached to a model like the members'; that model becomes the stack.
        members: the K attached chains, of the same parts.

    Raises:
        ConfigError: a part, or something that trains, has no form for several members.
    """

    def __init__(self, chain: Chain, members: Sequence[Chain]) -> None:
        parts: list[Any] = chain.parts
        for part in parts:
            if not hasattr(part, "stack"):
                raise ConfigError(f"{part.name} has no form for several members at once")
        model = chain.attached
        stack_models(model, [member.attached for member in members])
        twins = zip(*(member.parts for member in members), strict=True)
        super().__init__([part.stack(own, model) for part, own in zip(parts, twins, strict=True)])
        self.model, self.members = model, members
        self.shapes = [{name: tensor.shape for name, tensor in member.changed().items()} for member in members]

    def weights(self, member: int) -> dict[str, Tensor]:
        """What `changed` of that member alone would give: views of the stack."""
        return self.unstacked(dict(self.trainable()), member)

    def unstacked(self, tensors: dict[str, Tensor], member: int) -> dict[str, Tensor]:
        """A member's share of tensors that lie as the trained ones do: name -> (K, ...)."""
        return {name: tensors[name].detach()[member][corner(shape)] for name, shape in self.shapes[member].items()}
