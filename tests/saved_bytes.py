"""What autograd keeps for the backward pass, in bytes; each storage once, parameters and buffers left out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def saved_bytes(module: nn.Module, *inputs: Any, **named: Any) -> int:
    """Bytes saved by one forward pass of `module`."""
    held = {t.untyped_storage().data_ptr() for t in [*module.parameters(), *module.buffers()]}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(*inputs, **named)
    total = sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in held)
    del output
    return total
