"""Which linear layer of a transformer block is which, over the names that the model families give them."""

from __future__ import annotations

from torch import nn

from lowrank.errors import ConfigError
from lowrank.targets import linear_names

KINDS: dict[str, tuple[str, ...]] = {
    "q": ("q_proj", "q_lin", "query"),
    "k": ("k_proj", "k_lin", "key"),
    "v": ("v_proj", "v_lin", "value"),
    "o": ("o_proj", "out_lin", "attention.output.dense", "attn.c_proj"),
    "gate": ("gate_proj",),
    "up": ("up_proj", "lin1", "intermediate.dense", "mlp.c_fc", "fc1"),
    "down": ("down_proj", "lin2", "output.dense", "mlp.c_proj", "fc2"),
}
"""Kind -> endings of the dotted module name; the first kind that fits is the layer's."""


def kind_of(name: str) -> str | None:
    """The kind of the layer called `name`, or None where its name says none."""
    for kind, endings in KINDS.items():
        if any(name == ending or name.endswith(f".{ending}") for ending in endings):
            return kind
    return None


def layers_of_kind(model: nn.Module, kind: str, where: str) -> list[str]:
    """The layers of a kind, in model order.

    Raises:
        ConfigError: the model has none, as GPT-2, whose q, k and v are one layer.
    """
    names = linear_names(model, head=False)
    found = [name for name in names if kind_of(name) == kind]
    if not found:
        leaves = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in names}))
        raise ConfigError(
            f"{where}: {type(model).__name__} has no separate {kind!r} layer; allowed: a pattern for one of {leaves}"
        )
    return found
