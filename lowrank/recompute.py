"""Gradient checkpointing: a block keeps its inputs, and computes the rest again when the backward pass needs it."""

from __future__ import annotations

import functools
from typing import Any, cast

from torch import nn
from torch.utils.checkpoint import checkpoint

from lowrank.errors import ConfigError


def checkpoint_blocks(model: nn.Module) -> None:
    """Makes every block of a transformers model compute its forward pass again in the backward pass.

    The random state is put back for that, so dropout drops the same entries; every number stays the same bit for
    bit. In evaluation nothing changes.

    Raises:
        ConfigError: the model's blocks cannot.

    Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", section 4, with one segment a block.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    blocks: list[Any] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks:
        raise ConfigError(
            f"gradient_checkpointing: {type(model).__name__} has no blocks that transformers can compute again; "
            "allowed: false"
        )
    for block in blocks:
        # Reentrant checkpoints need an input that asks for a gradient, which a frozen embedding does not give.
        block._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)
        block.gradient_checkpointing = True
    cast(Any, model).config.use_cache = False  # a block that runs twice would put its keys there twice


def checkpointed_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks that `checkpoint_blocks` made so."""
    return [module for module in model.modules() if hasattr(module, "_gradient_checkpointing_func")]
