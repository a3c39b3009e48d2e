"""What the parts share that fold adapters into the base while training goes on."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lowrank.errors import ConfigError
from lowrank.methods.adapted import adapted, untie
from lowrank.methods.part import Part


def require_lora(chain: Any, part: Part) -> None:
    """Refuses a chain in which `lora` does not stand in front of `part`.

    Raises:
        ConfigError: no lora, or behind the part.
    """
    if not any(other.name == "lora" for other in chain.before(part)):
        raise ConfigError(f"{part.name}: merges LoRA's term, so lora stands in front of it, as in lora+{part.name}")


def refuse_coded_base(chain: Any, part: Part) -> None:
    """Refuses to merge again and again into a weight that is stored in 4 bits.

    Raises:
        ConfigError: the chain holds nf4.
    """
    if "nf4" in chain:
        raise ConfigError(
            f"{part.name}: merges into the base while training, and nf4 stores the base in 4 bits, where a small "
            "merge is rounded away; allowed: a base in floating point"
        )


def refuse_other_optimizer(chain: Any, part: Part) -> None:
    """Refuses an optimizer whose moments are not AdamW's: in a subspace, or in 8 bits.

    Raises:
        ConfigError: a part of the chain brings the optimizer.
    """
    for other in chain.parts:
        if hasattr(other, "optimizer"):
            raise ConfigError(
                f"{part.name}: changes AdamW's moments when it merges, and {other.name} brings an optimizer that keeps "
                f"them in a form of its own; allowed: the optimizer of a chain without {other.name}"
            )


def untie_targets(model: nn.Module, kind: str) -> None:
    """Gives each layer with an adapter of that kind its own weight, so that a merge changes this layer only."""
    for _, layer in adapted(model, kind):
        untie(model, layer.base)


def base_weights(model: nn.Module, kind: str) -> dict[str, Tensor]:
    """The base weights under the adapters of that kind, by name, as stored."""
    return {f"{name}.base.weight": layer.base.get_parameter("weight").detach() for name, layer in adapted(model, kind)}
