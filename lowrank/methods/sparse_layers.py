"""Where a model's feed-forward and attention layers stand, for the families that SparseLoRA knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from lowrank.errors import ConfigError
from lowrank.methods.layer_kinds import kind_of
from lowrank.targets import linear_names

FAMILIES: dict[str, tuple[str, Literal["first", "last"]]] = {
    "bert": ("hidden_act", "first"),
    "distilbert": ("activation", "first"),
    "gpt2": ("activation_function", "last"),
    "llama": ("hidden_act", "last"),
    "vit": ("hidden_act", "first"),
}
"""Model type -> where its config names the activation, and which token a classifier reads."""

FUSED = ("attn.c_attn",)
"""Endings of layers that hold q, k and v in one, in this order."""


@dataclass(frozen=True)
class Block:
    """Dotted names of the linear layers of one transformer block, by kind; `qkv` is q, k and v in one."""

    index: int
    names: dict[str, str]


@dataclass(frozen=True)
class Family:
    """What SparseLoRA needs to know of a model.

    Args:
        blocks: its transformer blocks, in order.
        activation: the feed-forward activation, element by element.
        pooled: the token that a classifier reads.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: channels of a head.
    """

    blocks: list[Block]
    activation: Callable[[Tensor], Tensor]
    pooled: Literal["first", "last"]
    heads: int
    kv_heads: int
    head_dim: int


def family_of(model: nn.Module, where: str) -> Family:
    """The blocks of a transformers model.

    Raises:
        ConfigError: a family that is not known, or one that is cut in chunks.
    """
    config: Any = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    if kind not in FAMILIES:
        raise ConfigError(
            f"{where}: {type(model).__name__} is of no family whose feed-forward and attention layers are known; "
            f"allowed: the transformers models {', '.join(FAMILIES)}"
        )
    if getattr(config, "chunk_size_feed_forward", 0):
        raise ConfigError(
            f"{where}: chunk_size_feed_forward {config.chunk_size_feed_forward} hides from a layer which token is "
            "which; allowed: 0"
        )
    from transformers.activations import ACT2FN  # loaded with the model's class, never for a plan

    found: dict[int, dict[str, str]] = {}
    for name in linear_names(model, head=False):
        place = "qkv" if name.endswith(FUSED) else kind_of(name)
        numbers = [int(segment) for segment in name.split(".") if segment.isdigit()]
        if place is not None and numbers:
            found.setdefault(numbers[0], {})[place] = name
    activation, pooled = FAMILIES[kind]
    heads = config.num_attention_heads
    return Family(
        blocks=[Block(index, names) for index, names in sorted(found.items())],
        activation=ACT2FN[getattr(config, activation)],
        pooled=pooled,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )
